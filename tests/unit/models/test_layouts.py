"""What the layouts of encoders refuse, and how the names of a checkpoint are found."""

from __future__ import annotations

import pytest

from bei_core.errors import UnsupportedModelError
from bei_core.models.encoder_layouts import BERT, ELECTRA, JINA_BERT, ROBERTA, T5, BertLayout
from bei_core.models.families import family_of
from bei_core.models.layouts import Layout
from bei_core.models.rotary_layouts import GTE, JINA_V3, NOMIC
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
        assert find_names(layout.names, {*names.telling()}.__contains__) is names
    assert find_names(layout.names, set().__contains__) is layout.names[0]


def test_a_t5_with_two_tables_of_words_uses_that_of_the_encoder() -> None:
    both = {name for names in T5.names for name in names.telling()}
    assert find_names(T5.names, both.__contains__).words == "encoder.embed_tokens"


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
    layers = {names.layer.format(0) + name for name in (names.gated if has_gates else (names.up,))}
    for activation in ("swiglu", "gelu"):
        sizes = NOMIC.sizes({**NEEDED, "activation_function": activation})
        assert sizes.is_gated == (activation == "swiglu")
        assert NOMIC.fit(sizes, names, layers.__contains__).is_gated == has_gates
