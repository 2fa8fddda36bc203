"""Large bodies are counted before they are decoded, and decoded in pieces to the same value as in one."""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bei_core.errors import MalformedBodyError, PayloadTooLargeError, RequestError, ValidationError
from bei_core.http import bodies
from bei_core.http.bodies import Undecoded, convert_large, free, memory_of
from bei_core.http.memory import limit_collections
from bei_core.http.schemas import common
from bei_core.http.schemas.common import convert, decode
from bei_core.http.schemas.openai import EmbeddingsRequest
from bei_core.http.schemas.tokens import DecodeRequest
from tests.corpus import BODIES, kept

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every body is cut."""
    monkeypatch.setattr(bodies, "MAX_WHOLE_BYTES", 16)
    monkeypatch.setattr(bodies, "MAX_JSON_PIECE_BYTES", 16)
    monkeypatch.setattr(bodies, "_WINDOW", 7)
    monkeypatch.setattr(bodies, "_MAX_NAME", 100_000)


def decode_large(raw: bytes, schema: Any) -> Any:  # noqa: ANN401 - of the schema
    return Undecoded(raw).decode(schema)


def outcome(raw: bytes, large: bool) -> object:
    """The decoded value, or RequestError for a body that is refused.

    Which of several faults a body is refused for may differ, such as a number out of range before a bracket too many.
    """
    try:
        return (decode_large if large else decode)(raw, object)
    except (MalformedBodyError, ValidationError):
        return RequestError


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=3 * settings().max_examples, deadline=None)
@given(value=JSON, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_a_body_in_pieces_is_decoded_to_the_same_value_as_the_whole(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    assert outcome(raw, large=True) == outcome(raw, large=False)


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=3 * settings().max_examples, deadline=None)
@given(value=JSON, seed=st.integers(0, 2**32))
@example(value=sys.float_info.max, seed=71)  # takes out a digit, and the number is out of range
def test_what_is_not_json_is_refused_in_pieces_too(value: object, seed: int) -> None:
    raw, random_ = bytearray(json.dumps(value).encode()), random.Random(seed)
    for _ in range(random_.choice([1, 1, 2])):
        place = random_.randrange(len(raw) + 1)
        raw[place : place + random_.randrange(2)] = random_.choice(
            [b"", b",", b"]", b"[", b"}", b"{", b'"', b"\\", b":"]
        )
    assert outcome(bytes(raw), large=True) == outcome(bytes(raw), large=False)


@pytest.mark.usefixtures("small_pieces")
@kept(BODIES)
def test_a_kept_body_is_decoded_in_pieces_as_in_one(content: bytes) -> None:
    assert repr(outcome(content, large=True)) == repr(outcome(content, large=False))


@pytest.mark.parametrize(
    ("raw", "limit"),
    [
        (b'{"ids":[' + b"[]," * 200_000 + b"[]]}", "65536 lists and objects"),
        (b'{"input":[' + b'"",' * 2_000_000 + b'""]}', "1200000 values"),
        (b"{" + b'"a":1,' * 2_000_000 + b'"b":1}', "1200000 values"),
        (b"{" + b",".join(b'"f%d":1' % number for number in range(20_000)) + b"}", "8192 fields"),
        (b'{"input":"' + b"a " * 2_500_000 + b'"}', "4194304"),
        (b" " * 5_000_000, "4194304"),
        (b"{" + b'"' + b"n" * 200_000 + b'":[]}', "field"),
        (b"[" * 60_000 + b" " * 100_000 + b"]" * 60_000, "nested too deeply"),
    ],
    ids=["lists", "strings", "repeated fields", "fields", "text", "spaces", "name", "depth"],
)
def test_a_body_with_too_much_in_it_is_refused_with_the_limit(raw: bytes, limit: str) -> None:
    with pytest.raises(RequestError, match=limit) as raised:
        decode_large(raw, EmbeddingsRequest)
    assert raised.value.status in {400, 413}


def test_a_large_body_names_its_wrong_field_as_a_small_one_does() -> None:
    texts: list[object] = ["a" * 1000] * 500
    body = decode_large(msgspec.json.encode({"input": texts, "unknown": [1, {}]}), EmbeddingsRequest)
    assert body.input == texts
    texts[321] = 1.5
    with pytest.raises(ValidationError, match=r"input\[321\]|\$\.input\[\.\.\.\]"):
        decode_large(msgspec.json.encode({"input": texts}), EmbeddingsRequest)
    with pytest.raises(ValidationError, match="input"):
        decode_large(msgspec.json.encode({"inputs": texts}), EmbeddingsRequest)


INPUTS = st.text() | st.integers() | st.lists(st.integers() | st.text(), max_size=9) | st.none()


@settings(deadline=None)
@given(body=st.dictionaries(st.sampled_from(["ids", "model", "skip_special_tokens"]), INPUTS | st.lists(INPUTS)))
@example(body={"ids": [[1] * 9, 2, [3] * 7]})
@example(body={"ids": [[1, 2, 3, 4, "5"]]})
def test_a_body_is_converted_in_pieces_as_in_one(body: dict[str, Any]) -> None:
    def outcome_of(function: Callable[..., object]) -> object:
        try:
            return function(body, DecodeRequest)
        except ValidationError as error:
            return str(error), error.param

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_ITEMS_PER_PIECE", 2)
        assert outcome_of(convert_large) == outcome_of(convert)


def test_no_call_converts_more_than_a_piece_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(value: dict[str, Any] | list[Any], schema: type) -> object:
        lists = value.values() if isinstance(value, dict) else [value]
        sizes.append(sum(len(item) if isinstance(item, list) else 1 for items in lists for item in items))
        return convert(value, schema)

    monkeypatch.setattr(bodies, "convert", counted)
    for ids in ([1] * 100_000, [[1] * 1000] * 100, [[1] * 100_000]):
        convert_large({"ids": ids}, DecodeRequest)
    assert max(sizes) <= 8192


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=3 * settings().max_examples, deadline=None)
@given(value=JSON | st.lists(st.text(st.sampled_from('a"\\u0é中😀'))), ascii_only=st.booleans())
@example(value=["a" * 40 + "😀", "b" * 40], ascii_only=False)
@example(value=["\\u", "\\" * 7 + "u0041"], ascii_only=True)
def test_the_memory_of_a_body_is_known_before_it_is_decoded(value: object, ascii_only: bool) -> None:
    raw = b" " * 20 + json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")
    assert Undecoded(raw).num_bytes >= memory_of(decode(raw, object))


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        ["word " * 800] * 100,
        ["Grüße " * 800] * 100,
        ["中文 " * 800] * 100,
        ["a" * 4000 + "😀", "b" * 40_000] * 10,
        [list(range(1000, 2000))] * 100,
    ],
    ids=["ASCII", "Latin-1", "Chinese", "an emoji in some", "ids"],
)
def test_a_body_is_counted_as_little_more_than_it_takes(value: object, ascii_only: bool) -> None:
    raw = json.dumps({"inputs": value}, ensure_ascii=ascii_only).encode()
    memory = memory_of(decode(raw, object))
    assert memory <= Undecoded(raw).num_bytes < 2.5 * memory


def test_memory_counts_what_strings_really_take() -> None:
    plain, with_emoji = (decode_large(msgspec.json.encode("a" * 200_000 + end), object) for end in ("", "😀"))
    assert 200_000 <= memory_of(plain) < 201_000
    assert memory_of(with_emoji) > 4 * 200_000
    body = EmbeddingsRequest(input=["a" * 1000, {"b": "c" * 1000}])  # type: ignore[list-item]
    assert memory_of(body) > 2000


def test_a_body_over_the_limit_raises_payload_too_large() -> None:
    with pytest.raises(PayloadTooLargeError):
        decode_large(b"[" + b"[]," * 100_000 + b"[]]", object)


def test_a_body_is_freed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_ITEMS_PER_PIECE", 10)
    freed = [0]

    class Value:
        def __del__(self) -> None:
            freed[-1] += 1

    class Piecewise(list[object]):
        """A list; each deletion begins a new piece."""

        def __delitem__(self, key: object) -> None:
            freed.append(0)
            super().__delitem__(key)  # type: ignore[arg-type]

    texts: Any = [Piecewise(Value() for _ in range(95)), Piecewise(), Piecewise(Value() for _ in range(3))]
    free([EmbeddingsRequest(input=texts), {"name": texts[2]}])
    assert sum(freed) == 98
    assert max(freed) <= 10 + 3
    assert not any(texts)


def test_no_full_collection_begins_while_a_body_is_decoded() -> None:
    """It stopped all threads for 35 ms."""
    raw, threshold, generations = json.dumps({"input": [[1, 2]] * 60_000}).encode(), gc.get_threshold(), list[int]()

    def watch(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generations.append(info["generation"])

    limit_collections()
    generations.clear()
    gc.callbacks.append(watch)
    try:
        body = decode_large(raw, EmbeddingsRequest)
    finally:
        gc.callbacks.remove(watch)
        gc.set_threshold(*threshold)
        gc.unfreeze()
    assert len(body.input) == 60_000
    assert generations
    assert 2 not in generations


def test_a_body_that_does_not_fit_is_refused_without_reading_the_schema_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would hold up the event loop for 0.5 ms."""
    fields = Mock(wraps=msgspec.structs.fields)
    monkeypatch.setattr(msgspec.structs, "fields", fields)
    common._fields.cache_clear()
    for raw in (b'{"input": 5}', b'{"input": "a", "encoding_format": "$.input"}', b'{"input": "a", "endianness": "b"}'):
        for _ in range(2):
            with pytest.raises(ValidationError, match="known are native" if b"endianness" in raw else None):
                decode(raw, EmbeddingsRequest)
        assert fields.call_count == (0 if raw.endswith(b"5}") else 1)
