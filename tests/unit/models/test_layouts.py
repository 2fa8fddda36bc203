"""What the layouts of encoders refuse, and how the names of a checkpoint are found."""

from __future__ import annotations

import pytest

from bei_core.errors import UnsupportedModelError
from bei_core.models.encoder_layouts import BERT, JINA_BERT, BertLayout


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
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    with pytest.raises(UnsupportedModelError, match=rf"config\.json: {refused}"):
        layout.sizes({**dict.fromkeys(sizes, 8), **config})
