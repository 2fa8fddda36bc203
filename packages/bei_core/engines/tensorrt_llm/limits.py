"""Finds out whether TensorRT-LLM can run a model, before anything is loaded."""

from __future__ import annotations

from bei_core.engines.torch.folder import Facts, attention_sizes
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import FAMILIES, Family
from bei_core.models.kind import Kind
from bei_core.models.layouts import DecoderSizes

# The sizes of attention heads for which TensorRT-LLM's fused attention has kernels. They must be checked here, because
# for any other size TensorRT-LLM ends the process (its `AttentionOp::initialize` throws, but is noexcept).
HEAD_SIZES = frozenset({32, 48, 64, 72, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256})

_KINDS = (Kind.EMBEDDING, Kind.CLASSIFIER, Kind.RERANKER)


def check_model(facts: Facts, dtype: str) -> None:
    """Checks that the engine can run a model in `dtype` ("float32", "bfloat16", "float16").

    Raises UnsupportedModelError for a family, a kind of model or a size of attention heads that it cannot run.
    """
    spec, is_known = facts.spec, runs(facts.of_family)
    if not is_known or spec.kind not in _KINDS:
        what = f"a model of kind {spec.kind}" if is_known else spec.architecture
        known = ", ".join(name for name, family in FAMILIES.items() if runs(family))
        raise UnsupportedModelError(
            f"the TensorRT-LLM engine does not run {what}; it runs {known} as {', '.join(_KINDS)}. Others may: "
            "--engine torch or --engine openvino"
        )
    size = attention_sizes(facts)[2]
    # TensorRT-LLM's attention for f32 (VANILLA) takes heads of any size. So does the attention in plain torch.
    if dtype != "float32" and size not in HEAD_SIZES and not all(_has_own_attention(facts)):
        raise UnsupportedModelError(
            f"{spec.architecture} has attention heads of size {size}, for which TensorRT-LLM has no kernel; it has "
            f"{', '.join(map(str, sorted(HEAD_SIZES)))}. Use --engine torch"
        )


def runs(family: Family) -> bool:
    """Whether the engine can run a family. TensorRT-LLM's attention cannot add MPNet's bias of scores."""
    if family.page == "bert":
        return all(names.relative_attention is None for names in family.layout)
    return family.page == "decoder"


def needs_loop(facts: Facts) -> bool:
    """Whether a layer has the attention in plain torch, which may loop over sequences, so CUDA graphs are not used."""
    return any(_has_own_attention(facts))


def _has_own_attention(facts: Facts) -> list[bool]:
    """Returns for each type of layer whether its attention is the one in plain torch.

    This is so for soft-capped scores, and for a window that is shorter than the longest sequence.
    """
    if facts.of_family.page == "bert":
        return [False]
    switches = facts.of_family.layout
    sizes = DecoderSizes.of(switches, facts.spec.config)
    windows = [sizes.window(switches, layer_type) for layer_type in set(sizes.layer_types)]
    is_capped = sizes.soft_cap is not None
    return [is_capped or (window is not None and window < facts.spec.max_seq_len) for window in windows]
