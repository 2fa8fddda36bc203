"""Tokenizer folders as published give the ids and token types that transformers gives for them.

`scripts/golden_tokenizers.py` wrote what is read here.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bei_core.tasks import EncodeOptions, Pair, TruncationSide
from bei_core.text.published import canonical_tokenizer
from bei_core.text.tokenizer import TextTokenizer

DATA = Path(__file__).resolve().parents[1] / "data" / "published_tokenizers"
NAMES = sorted(path.stem for path in DATA.glob("*.json") if path.stem != "inputs")
INPUTS = json.loads((DATA / "inputs.json").read_text())
SHARED = json.loads(gzip.decompress((DATA / "shared.json.gz").read_bytes()))


def whole(content: Any) -> Any:  # noqa: ANN401
    """What a file holds, its vocabulary included."""
    if isinstance(content, dict) and "shared" in content:
        return SHARED[content["shared"]]
    return content


def unpack(name: str, folder: Path) -> dict[str, Any]:
    """Writes a folder's files; what is expected of it."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    for file, content in found["files"].items():
        content = whole(content)
        if file == "tokenizer.json":
            content = {**content, "model": whole(content["model"])}
        if set(content) == {"base64"}:
            (folder / file).write_bytes(base64.b64decode(content["base64"]))
        elif set(content) == {"text"}:
            (folder / file).write_text(content["text"], encoding="utf-8")
        else:
            (folder / file).write_text(json.dumps(content))
    return {name: whole(content) for name, content in found["expected"].items()}


def opened(folder: Path, max_seq_len: int = 1000) -> TextTokenizer:
    """The canonical tokenizer of a folder, as the server opens it."""
    canonical_tokenizer(folder).write(folder / "canonical.json")
    return TextTokenizer(folder / "canonical.json", max_seq_len=max_seq_len, vocab_size=10**6)


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_types_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    expected = unpack(name, tmp_path)
    tokenizer = opened(tmp_path)
    texts = tokenizer.encode_now(INPUTS["texts"], EncodeOptions())
    pairs = tokenizer.encode_now([Pair(*pair) for pair in INPUTS["pairs"]], EncodeOptions())
    cut = opened(tmp_path, INPUTS["cut"]).encode_now(INPUTS["texts"][: len(expected["cut"])], EncodeOptions())
    assert [tokens.ids.tolist() for tokens in texts] == expected["texts"]
    assert [tokens.ids.tolist() for tokens in pairs] == expected["pairs"]
    assert ["".join(map(str, tokens.type_ids)) for tokens in pairs] == expected["types"]
    assert [tokens.ids.tolist() for tokens in cut] == expected["cut"]


def test_a_request_that_names_a_side_has_it_whatever_was_published(tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    unpack("bert-left", tmp_path / "left")
    plain = unpack("bert", tmp_path)["cut"]
    texts = INPUTS["texts"][: len(plain)]
    found = opened(tmp_path / "left", INPUTS["cut"]).encode_now(texts, EncodeOptions(side=TruncationSide.RIGHT))
    assert [tokens.ids.tolist() for tokens in found] == plain
