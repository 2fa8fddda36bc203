"""What the sizes of BERT-like encoders refuse."""

from __future__ import annotations

import pytest

from bei_core.errors import UnsupportedModelError
from bei_core.models.layouts import BertNames, BertSizes


def test_causal_attention_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"config\.json: is_decoder true"):
        BertSizes.of(BertNames(), {"is_decoder": True})
