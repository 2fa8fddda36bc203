"""What TensorRT-LLM cannot run, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bei_core.engines.torch.folder import Facts, attention_sizes, has_page
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import FAMILIES, Family
from bei_core.models.kind import Kind
from bei_core.models.layouts import DecoderSizes

# Sizes for which its fused attention has kernels. `AttentionOp::initialize` is noexcept: another size ends the process.
HEAD_SIZES = frozenset({32, 48, 64, 72, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256})

_KINDS = (Kind.EMBEDDING, Kind.CLASSIFIER, Kind.RERANKER)


def check_model(facts: Facts, dtype: str) -> None:
    """Raises UnsupportedModelError for a family, a kind or a size of heads that TensorRT-LLM or our use of it lacks."""
    spec, runs = facts.spec, _runs(facts.of_family)
    if not runs or spec.kind not in _KINDS:
        what = f"a model of kind {spec.kind}" if runs else spec.architecture
        known = ", ".join(name for name, family in FAMILIES.items() if _runs(family))
        raise UnsupportedModelError(
            f"the TensorRT-LLM engine does not run {what}; it runs {known} as {', '.join(_KINDS)}. Others may: "
            "--engine torch or --engine openvino"
        )
    size = attention_sizes(facts)[2]
    # In f32 it runs on its plain attention, which takes any size, as ours does.
    if dtype != "float32" and size not in HEAD_SIZES and not all(_has_own_attention(facts)):
        raise UnsupportedModelError(
            f"{spec.architecture} has attention heads of size {size}, for which TensorRT-LLM has no kernel; it has "
            f"{', '.join(map(str, sorted(HEAD_SIZES)))}. Use --engine torch"
        )


# For each page, whether TensorRT-LLM's attention can be that of a family. MPNet adds biases to the scores.
RUNS: Mapping[str, Callable[[Family], bool]] = {
    "bert": lambda family: all(names.relative_attention is None for names in family.layout),
    "decoder": lambda family: True,
    "rotary": lambda family: False,
    "deberta": lambda family: False,
}


def _runs(family: Family) -> bool:
    return has_page(family) and RUNS[family.page](family)


def needs_loop(facts: Facts) -> bool:
    """Whether a layer has our own attention, which loops over sequences, so that no CUDA graph can contain it."""
    return any(_has_own_attention(facts))


def _has_own_attention(facts: Facts) -> list[bool]:
    """For each type of layer, whether it has soft-capped scores, or a window shorter than the longest sequence."""
    if facts.of_family.page == "bert":
        return [False]
    switches = facts.of_family.layout
    sizes = DecoderSizes.of(switches, facts.spec.config)
    windows = [sizes.window(switches, layer_type) for layer_type in set(sizes.layer_types)]
    is_capped = sizes.soft_cap is not None
    return [is_capped or (window is not None and window < facts.spec.max_seq_len) for window in windows]
