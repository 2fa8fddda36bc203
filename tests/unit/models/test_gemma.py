"""What Gemma 1 reads of config.json."""

from __future__ import annotations

from typing import Any

import pytest

from bei_core.models.class_config import as_class_reads
from bei_core.models.families import family_of


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "gelu_pytorch_tanh"),
        ({"hidden_act": None}, "gelu_pytorch_tanh"),
        ({"hidden_act": "gelu"}, "gelu_pytorch_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": "gelu"}, "gelu_pytorch_tanh"),
        ({"hidden_act": "silu"}, "silu"),
    ],
)
def test_gelu_means_its_tanh_approximation_in_gemma_1(config: dict[str, Any], activation: str) -> None:
    """The first configs of Google's and of bge-reranker-v2-gemma have `gelu`."""
    read = as_class_reads({"architectures": ["GemmaForCausalLM"], **config})
    assert family_of("GemmaModel").layout.sizes(read).activation == activation


def test_gemma_1_ignores_the_scale_and_the_soft_cap_of_gemma_2() -> None:
    keys = {"query_pre_attn_scalar": 144, "attn_logit_softcapping": 20.0}
    read = as_class_reads({"architectures": ["GemmaModel"], **keys})
    sizes = family_of("GemmaModel").layout.sizes(read)
    assert (sizes.heads.scale, sizes.soft_cap) == (256**-0.5, None)
