"""Finds out whether TensorRT-LLM can run a model, before anything is loaded."""

from __future__ import annotations

from bei_core.engines.torch.folder import Facts, attention_of
from bei_core.errors import UnsupportedModelError
from bei_core.models.encoder_layouts import BertLayout
from bei_core.models.families import FAMILIES, Family
from bei_core.models.kind import Kind

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
    # TensorRT-LLM's attention for f32 (VANILLA) takes heads of any size. So does the attention in plain torch.
    for each in attention_of(facts).values() if dtype != "float32" else ():
        if each.is_plain and each.head_size not in HEAD_SIZES:
            raise UnsupportedModelError(
                f"{spec.architecture} has attention heads of size {each.head_size}, for which TensorRT-LLM has no "
                f"kernel; it has {', '.join(map(str, sorted(HEAD_SIZES)))}. Use --engine torch"
            )


def runs(family: Family) -> bool:
    """Whether the engine can run a family. TensorRT-LLM's attention cannot add biases of scores (MPNet, JinaBERT)."""
    if isinstance(family.layout, BertLayout):
        return not family.layout.has_score_bias
    return family.layout.name == "decoder"


def needs_loop(facts: Facts) -> bool:
    """Whether a layer has the attention in plain torch, which may loop over sequences, so CUDA graphs are not used."""
    return not all(sizes.is_plain for sizes in attention_of(facts).values())
