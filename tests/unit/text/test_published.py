"""The canonical tokenizer of a folder: refusals, and the parts that decide ids, types and the engine's address.

That ids and types are those of transformers is tests/golden/test_tokenizers.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import tokenizers

from bei_core.checkpoint import Checkpoint
from bei_core.errors import BeiError, CheckpointError, UnsupportedModelError
from bei_core.text.published import canonical_tokenizer, check_tokenizer
from bei_core.text.published.components import without_types
from bei_core.text.published.sentencepiece import parse_model
from tests.golden.cases import CASES, Case
from tests.golden.texts import mixed_texts
from tests.hub import TOKENIZER

BERT: Mapping[str, object] = {"config.json": {"model_type": "bert"}, "tokenizer.json": TOKENIZER}


def folder_of(folder: Path, files: Mapping[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def config(**values: object) -> dict[str, object]:
    return {**BERT, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", **values}}


def opened(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(canonical_tokenizer(folder).text)


# --- What is refused, in one line


@pytest.mark.parametrize("check", [check_tokenizer, canonical_tokenizer])
@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            config(tokenizer_class="BertJapaneseTokenizer"),
            "class BertJapaneseTokenizer is not supported; known are Bert",
        ),
        (
            config(auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}),
            r"class tokenization_own\.OwnTokenizer is code in the model's repository, which BEI does not run; if you",
        ),
        (
            config(auto_map={"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", None]}),
            "names the class tokenization_qwen.Qwen2Tokenizer but has no add_eos_token; set it to true or false",
        ),
        ({"config.json": {"model_type": "bert"}}, r"nor vocab\.txt for BertTokenizer; write tokenizer\.json"),
        (
            {"config.json": {"model_type": "roberta"}, "vocab.json": {}},
            r"nor vocab\.json and merges\.txt for RobertaTokenizer; write tokenizer\.json",
        ),
        ({"config.json": {"model_type": "modernbert"}}, r"no tokenizer\.json, and neither .* says which class"),
        (
            {"config.json": {}, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}},
            r"has no tokenizer\.json; write tokenizer\.json with transformers",
        ),
        ({**BERT, "tokenizer_config.json": "{"}, r"tokenizer_config\.json is not JSON"),
        ({**BERT, "tokenizer_config.json": []}, r"tokenizer_config\.json is not a JSON object"),
        (config(added_tokens_decoder={"3": "[DOC]"}), r"a token of the tokenizer's files is '\[DOC\]'"),
    ],
)
def test_a_folder_that_is_no_tokenizer_known_here_is_refused(
    tmp_path: Path, check: object, files: Mapping[str, object], said: str
) -> None:
    assert callable(check)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=said) as raised:
        check(folder_of(tmp_path, files))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({**BERT, "tokenizer.json": {}}, r"tokenizer\.json is not a tokenizer that `tokenizers` .* reads"),
        (
            config(tokenizer_class="LlamaTokenizer", add_eos_token=True, eos_token=None),
            "add_eos_token: true, but no eos_t",
        ),
        (config(truncation_side="middle"), "truncation_side is 'middle'; expected left or right"),
        (
            config(split_special_tokens=True, mask_token="<new>"),
            r"split_special_tokens is not supported.* lacks the special tokens <new>$",
        ),
        (
            {"config.json": {"model_type": "t5"}, "spiece.model": "no model"},
            r"spiece\.model is not a sentencepiece model",
        ),
        ({"config.json": {"model_type": "gpt2"}, "vocab.json": "{", "merges.txt": ""}, r"vocab\.json is not JSON"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_refused(tmp_path: Path, files: Mapping[str, object], said: str) -> None:
    with pytest.raises(BeiError, match=said) as raised:
        canonical_tokenizer(folder_of(tmp_path, files))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("data", [b"", b"\x0a\x05abc", b"\x0b", b"\x0a\x03\x0a\x01", b"\xff" * 3])
def test_a_damaged_sentencepiece_model_is_no_model(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        parse_model(data)


# --- What decides


def test_the_config_decides_the_digest(tmp_path: Path) -> None:
    digests = [
        canonical_tokenizer(folder_of(tmp_path, config(bos_token=token))).digest for token in (None, "no", "yes")
    ]
    assert len(set(digests)) == 3
    assert all(len(digest) == 32 for digest in digests)
    again = canonical_tokenizer(folder_of(tmp_path, config(bos_token="yes"))).digest
    assert again == digests[-1]


def test_limits_in_the_file_are_left_out(tmp_path: Path) -> None:
    padding: dict[str, object] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    limited = {**TOKENIZER, "truncation": cut, "padding": padding}
    found = opened(folder_of(tmp_path, {**BERT, "tokenizer.json": limited}))
    assert (found.truncation, found.padding) == (None, None)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    "processor",
    [
        None,
        TEMPLATE,
        BYTES,
        {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 2]},
        {
            "type": "RobertaProcessing",
            "sep": ["[SEP]", 4],
            "cls": ["[CLS]", 2],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        {"type": "Sequence", "processors": [BYTES, TEMPLATE]},
        {"type": "Sequence", "processors": [BYTES]},
    ],
)
def test_a_model_without_token_types_is_given_none_and_the_same_ids(processor: dict[str, object] | None) -> None:
    files = [{**TOKENIZER, "post_processor": each} for each in (processor, without_types(processor))]
    before, after = (tokenizers.Tokenizer.from_str(json.dumps(file)).encode("no", "yes") for file in files)
    assert after.ids == before.ids
    assert after.sequence_ids == before.sequence_ids
    assert set(after.type_ids) == {0}


@pytest.mark.parametrize(
    ("model_type", "merges", "tokens"),
    [
        ("gpt2", "#version: 0.2\na b\nab c\n", ["abc"]),
        ("gpt2", "a b\nab c\n", ["a", "b", "c"]),  # the first line is left out, whatever it has
        ("roberta", "x y\na b\nab c\n", ["abc"]),
        ("roberta", "#version: 0.2\na b\nab c", ["ab", "c"]),  # and so is what follows the last line break
        ("qwen2", "#version: 0.2\na b\nab c\n", ["abc"]),
        ("qwen2", "a b\nab c", ["abc"]),
    ],
)
def test_merges_are_read_as_the_class_reads_them(
    tmp_path: Path, model_type: str, merges: str, tokens: list[str]
) -> None:
    """`tokenization_gpt2.py`, `tokenization_roberta.py` and `tokenization_qwen2.py` of transformers 4.57."""
    names = ["<s>", "</s>", "<|endoftext|>", *"abcxy", "ab", "abc", "xy"]
    files = {"config.json": {"model_type": model_type}, "merges.txt": merges}
    vocab = {name: index for index, name in enumerate(names)}
    found = opened(folder_of(tmp_path, {**files, "vocab.json": vocab})).encode("abc", add_special_tokens=False)
    assert found.tokens == tokens


# --- Nothing changes where nothing has to


def test_minilm_has_the_ids_and_types_of_its_tokenizer_file(minilm: Checkpoint) -> None:
    texts = mixed_texts()
    inputs = [*texts, *zip(texts, reversed(texts), strict=True)]
    file = tokenizers.Tokenizer.from_file(str(minilm.folder / "tokenizer.json"))
    file.no_truncation()
    file.no_padding()
    for before, after in zip(file.encode_batch(inputs), opened(minilm.folder).encode_batch(inputs), strict=True):
        assert (after.ids, after.type_ids, after.offsets) == (before.ids, before.type_ids, before.offsets)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden_folders_have_the_ids_of_their_tokenizer_file(case: Case) -> None:
    file = tokenizers.Tokenizer.from_file(str(case.folder / "tokenizer.json"))
    file.no_truncation()
    file.no_padding()
    for before, after in zip(file.encode_batch(case.texts), opened(case.folder).encode_batch(case.texts), strict=True):
        assert (after.ids, after.offsets) == (before.ids, before.offsets)
