"""A tokenizer may have ids for which the model has no row."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from bei_core.errors import ValidationError
from bei_core.tasks import EncodeOptions
from bei_core.text.tokenizer import TextTokenizer


def test_an_id_beyond_the_table_is_named_though_the_tokenizer_has_few(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(WordLevel({"[UNK]": 0, "near": 1, "far": 1000}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", max_seq_len=8, vocab_size=10)
    assert tokenizer.encode_now(["near"], EncodeOptions())[0].ids.tolist() == [1]
    with pytest.raises(ValidationError, match="token id 1000 is not in the vocabulary"):
        tokenizer.encode_now(["near far"], EncodeOptions())
