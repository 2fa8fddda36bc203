"""What the layouts of encoders refuse, and how the names of a checkpoint are found."""

from __future__ import annotations

import pytest

from bei_core.errors import UnsupportedModelError
from bei_core.models.decoder_layouts import LLAMA, QWEN2, QWEN3
from bei_core.models.encoder_layouts import BERT, ELECTRA, JINA_BERT, ROBERTA, T5, BertLayout
from bei_core.models.families import family_of
from bei_core.models.layouts import Layout
from bei_core.models.rotary_layouts import GTE, JINA_V3, MODERNBERT, NOMIC
from bei_core.models.tensor_names import find_names

NEEDED: dict[str, object] = {
    **{"hidden_size": 8, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 8, "vocab_size": 8},
    **{"hidden_act": "gelu", "max_position_embeddings": 8},
}


def test_causal_attention_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"config\.json: is_decoder true"):
        BERT.sizes({"is_decoder": True})


@pytest.mark.parametrize(
    ("layout", "config", "refused"),
    [
        (
            BERT,
            {"position_embedding_type": "relative_key"},
            "position_embedding_type 'relative_key'.*'absolute'",
        ),
        (JINA_BERT, {}, "position_embedding_type 'absolute' is not supported, only 'alibi'"),
        (
            JINA_BERT,
            {"position_embedding_type": "alibi", "feed_forward_type": "original"},
            "feed_forward_type 'original' is not supported; JinaBERT needs one of .'geglu', 'reglu'.",
        ),
    ],
)
def test_other_positions_and_mlps_are_refused_with_those_that_are_known(
    layout: BertLayout, config: dict[str, object], refused: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"config\.json: {refused}"):
        layout.sizes({**NEEDED, **config})


@pytest.mark.parametrize("layout", [ROBERTA, JINA_BERT, NOMIC, GTE, JINA_V3, T5])
def test_the_names_are_those_of_which_a_checkpoint_has_most_layers(layout: Layout) -> None:
    for names in layout.names:
        assert find_names(layout.names, {*names.telling()}) is names
    assert find_names(layout.names, set()) is layout.names[0]


def test_a_t5_with_two_tables_of_words_uses_that_of_the_encoder() -> None:
    both = {name for names in T5.names for name in names.telling()}
    assert find_names(T5.names, both).words == "encoder.embed_tokens"


@pytest.mark.parametrize("architecture", ["BertModel", "NomicBertModel", "DebertaV2Model"])
def test_heads_of_different_sizes_are_refused_before_an_engine_is_built(architecture: str) -> None:
    config = {**NEEDED, "hidden_size": 36, "num_attention_heads": 7, "relative_attention": True}
    with pytest.raises(UnsupportedModelError, match="hidden size 36 is not a multiple of 7 heads"):
        family_of(architecture).layout.sizes(config)


@pytest.mark.parametrize(("layout", "width"), [(BERT, None), (ELECTRA, 4)])
def test_only_electra_reads_the_width_of_embeddings(layout: BertLayout, width: int | None) -> None:
    assert layout.sizes({**NEEDED, "embedding_size": 4}).width == width


@pytest.mark.parametrize("has_gates", [True, False])
def test_the_layers_say_whether_nomic_bert_has_gates(has_gates: bool) -> None:
    names = NOMIC.names[0]
    tensors = {f"{names.layer.format(0)}{name}.weight" for name in (names.gated if has_gates else (names.up,))}
    for activation in ("swiglu", "gelu"):
        sizes = NOMIC.sizes({**NEEDED, "activation_function": activation})
        assert sizes.is_gated == (activation == "swiglu")
        assert NOMIC.fit(sizes, names, tensors).is_gated == has_gates


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (LLAMA, "layers.3.self_attn.q_proj"),
        (LLAMA, "layers.3.mlp.up_proj"),
        (QWEN2, "layers.3.self_attn.o_proj"),
        (QWEN3, "layers.3.self_attn.k_proj"),
        (MODERNBERT, "layers.3.attn.Wqkv"),
        (MODERNBERT, "layers.3.mlp_norm"),
    ],
)
def test_a_bias_that_the_class_drops_is_refused_unless_config_json_names_it(layout: Layout, name: str) -> None:
    named = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
    layout.fit(layout.sizes({**NEEDED, **named}), layout.names[0], {f"{name}.bias"})
    with pytest.raises(
        UnsupportedModelError, match=rf"tensor {name}\.bias, but by config\.json this layer has no bias"
    ):
        layout.fit(layout.sizes(NEEDED), layout.names[0], {f"{name}.bias"})


def test_a_bias_of_a_layer_that_has_one_is_not_refused() -> None:
    QWEN2.fit(QWEN2.sizes(NEEDED), QWEN2.names[0], {"layers.0.self_attn.q_proj.bias"})
    NOMIC.fit(NOMIC.sizes(NEEDED), NOMIC.names[0], {"encoder.layers.0.attn.Wqkv.bias"})
