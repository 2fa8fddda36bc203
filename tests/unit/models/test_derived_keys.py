"""Keys of config.json with two names, and keys that the class derives from others, as transformers 4.57 and 5.5."""

from __future__ import annotations

from typing import Any

import pytest

from bei_core.models.class_config import as_class_reads
from bei_core.models.encoder_layouts import T5
from bei_core.models.rope import rope_settings


@pytest.mark.parametrize(
    ("architecture", "given", "read"),
    [
        ("DistilBertModel", {"n_layers": 6, "num_hidden_layers": 3}, {"n_layers": 3}),
        (
            "DistilBertForMaskedLM",
            {"hidden_size": 32, "num_attention_heads": 4, "n_heads": None},
            {"dim": 32, "n_heads": 4},
        ),
        ("DistilBertModel", {"n_layers": 6, "num_hidden_layers": None}, {"n_layers": 6}),
        (
            "T5EncoderModel",
            {"num_layers": 12, "num_hidden_layers": 2, "head_dim": 16, "d_kv": 8},
            {"num_layers": 2, "d_kv": 16},
        ),
        (
            "MT5ForConditionalGeneration",
            {"hidden_size": 24, "num_attention_heads": 3},
            {"d_model": 24, "num_heads": 3},
        ),
        ("BertModel", {"n_layers": 1, "num_hidden_layers": 2, "dim": 8}, {"num_hidden_layers": 2, "hidden_size": 768}),
    ],
)
def test_the_common_name_of_a_size_goes_before_the_name_of_the_class(
    architecture: str, given: dict[str, Any], read: dict[str, Any]
) -> None:
    config = as_class_reads({"architectures": [architecture], **given})
    assert {key: config[key] for key in read} == read


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}, ("gelu_new", True)),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": True}, ("gelu", True)),
        ({"feed_forward_proj": "gated-gelu", "is_gated_act": True}, ("gelu_new", True)),
        ({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new", "is_gated_act": False}, ("gelu_new", False)),
        ({"feed_forward_proj": "gelu", "is_gated_act": False}, ("gelu", False)),
        ({"feed_forward_proj": "gated-silu", "dense_act_fn": "relu"}, ("relu", True)),
        ({"dense_act_fn": "silu", "is_gated_act": True}, ("silu", True)),
        ({"feed_forward_proj": "gated-silu"}, ("silu", True)),
    ],
)
def test_the_activation_that_a_t5_names_goes_before_the_one_that_it_derives(
    values: dict[str, Any], expected: tuple[str, bool]
) -> None:
    sizes = T5.sizes(as_class_reads({"architectures": ["T5EncoderModel"], **values}))
    assert (sizes.activation, sizes.is_gated) == expected


def test_a_modernbert_ignores_the_theta_of_other_classes() -> None:
    config = as_class_reads({"architectures": ["ModernBertModel"], "rope_theta": 500.0})
    thetas = [rope_settings(config, layer_type=f"{each}_attention")[1] for each in ("full", "sliding")]
    assert thetas == [160_000.0, 10_000.0]


@pytest.mark.parametrize("name", ["Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3"])
def test_a_bias_that_the_class_never_has_is_not_read_from_config_json(name: str) -> None:
    config = as_class_reads({"architectures": [f"{name}Model"], "attention_bias": True, "mlp_bias": True})
    assert config["mlp_bias"] is False
    assert config["attention_bias"] is (name not in {"Mistral", "Qwen2"})
