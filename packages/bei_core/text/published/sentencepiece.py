"""Makes a tokenizer.json from a sentencepiece model.

The model is a protocol buffer (sentencepiece's `sentencepiece_model.proto`) with pieces and their scores, the algorithm
(unigram or BPE), and a table that normalises characters. Source of the conversion: transformers 4.57,
`convert_slow_tokenizer.py`, `SpmConverter` and its subclasses.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.text.published.components import Component
from bei_core.text.published.folder import Published, as_token
from bei_core.text.published.vocabulary import empty_state

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_CONTROL, _USER_DEFINED = 3, 4  # ModelProto.SentencePiece.Type
_SPACE = "▁"

Scored: TypeAlias = list[tuple[str, float]]  # pieces in the order of their ids, with their scores


class Piece(NamedTuple):
    """One entry of a sentencepiece vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class Model:
    """The parts of a sentencepiece model that a tokenizer.json needs."""

    pieces: tuple[Piece, ...]
    algorithm: int
    unknown_id: int
    unknown: str
    charsmap: bytes  # the table of the normaliser; empty if there is none


def read_sentencepiece(published: Published) -> Component:
    """Returns the tokenizer.json of the folder's sentencepiece model.

    Raises CheckpointError if the model is missing or damaged, UnsupportedModelError for an algorithm other than unigram
    and BPE.
    """
    path = published.folder / published.kind.vocab_file
    try:
        model = parse_model(path.read_bytes())
    except (OSError, ValueError, struct.error, IndexError) as fault:
        raise CheckpointError(f"{path} is not a sentencepiece model: {fault}") from fault
    if model.algorithm not in {_UNIGRAM, _BPE}:
        raise UnsupportedModelError(f"{path}: of sentencepiece's algorithms only unigram and bpe are supported")
    name = published.kind.name
    scored = _vocabulary(model, published)
    return empty_state(
        added_tokens=_added(model, scored),
        normalizer=_normalizer(model, published),
        pre_tokenizer=_pre_tokenizer(published),
        decoder=_decoder(published),
        model=_unigram(model, scored, name) if model.algorithm == _UNIGRAM else _byte_pairs(model, scored, name),
    )


def parse_model(data: bytes) -> Model:
    """Parses the bytes of a sentencepiece model. Raises ValueError, IndexError or struct.error if they are not one."""
    pieces: list[Piece] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(_bytes(value)))
            score = struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))[0]
            pieces.append(Piece(_bytes(fields.get(1, b"")).decode(), score, int(fields.get(3, 1))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    return Model(
        pieces=tuple(pieces),
        algorithm=int(trainer.get(3, _UNIGRAM)),
        unknown_id=int(trainer.get(40, 0)),
        unknown=_bytes(trainer.get(45, b"<unk>")).decode(),
        charsmap=_bytes(normalizer.get(2, b"")),
    )


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yields (field number, value) of a protocol buffer; the value of a varint is an int, any other value is bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the varint at `at` (7 bits per byte, the lowest bits first), and the index after it."""
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | data[at] << shift, at + 1


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field is a number, but bytes are expected")
    return value


def _vocabulary(model: Model, published: Published) -> Scored:
    """Returns the pieces with their scores; the index of a piece is the id that the class gives it."""
    name, plain = published.kind.name, [(piece.text, piece.score) for piece in model.pieces]
    if name == "XLMRoberta":
        return [*_zero("<s>", "<pad>", "</s>", "<unk>"), *plain[3:], ("<mask>", 0.0)]
    if name == "Camembert":
        head = _zero("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>")
        return [*head, ("<unk>NOTUSED", -100.0), *plain[1:], ("<mask>", 0.0)]
    if name in {"T5", "MT5"}:
        count = int(published.config.get("extra_ids", 100))
        return plain + _zero(*(f"<extra_id_{index}>" for index in reversed(range(count))))
    if name == "Llama":
        return [*_zero(*(text for text, _ in plain[:3])), *plain[3:]]
    if name == "Gemma":
        named = (published.config.get(key) or published.kind.tokens[key] for key in _GEMMA_FIRST)
        return _with_tab([*_zero(*(str(as_token(token)) for token in named)), *plain[3:]])
    if name == "Albert":
        return [(text, score - 100 * bool(_NUMBER_COMMA.search(text))) for text, score in plain]
    return plain


_GEMMA_FIRST = ("pad_token", "eos_token", "bos_token")
_NUMBER_COMMA = re.compile(r"\d,\Z")


def _zero(*tokens: str) -> Scored:
    return [(token, 0.0) for token in tokens]


def _with_tab(pieces: Scored) -> Scored:
    """Returns Gemma's pieces; in older models, which have no tab, the tab replaces the piece for byte 9."""
    texts = [text for text, _ in pieces]
    if "\t" not in texts and "<0x09>" in texts:
        pieces[texts.index("<0x09>")] = ("\t", 0.0)
    return pieces


def _added(model: Model, scored: Scored) -> list[Component]:
    """Returns the control pieces and the user-defined pieces as added tokens, which are found in a text as a whole."""
    ids = {text: index for index, (text, _) in reversed(list(enumerate(scored)))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    turns = {"<start_of_turn>", "<end_of_turn>"}
    return [
        {
            "id": ids[piece.text],
            "content": piece.text,
            **flags,
            "special": piece.kind == _CONTROL or piece.text in turns,
        }
        for piece in model.pieces
        if piece.kind in {_CONTROL, _USER_DEFINED} and piece.text in ids
    ]


def _unigram(model: Model, scored: Scored, name: str) -> Component:
    unknown = {"XLMRoberta": 3, "Camembert": 3, "Gemma": 3, "Llama": 0}.get(name, model.unknown_id)
    byte_fallback = name in {"Llama", "Gemma"}
    return {"type": "Unigram", "unk_id": unknown, "byte_fallback": byte_fallback, "vocab": [list(e) for e in scored]}


def _byte_pairs(model: Model, scored: Scored, name: str) -> Component:
    return {
        "type": "BPE",
        "unk_token": model.unknown,
        "fuse_unk": True,
        "byte_fallback": name in {"Llama", "Gemma"},
        "vocab": {text: index for index, (text, _) in enumerate(scored)},
        "merges": merges_of(model, scored),
    }


def merges_of(model: Model, scored: Scored) -> list[list[str]]:
    """Returns each pair of pieces that together form a piece, in the order in which sentencepiece merges them.

    The pair with the best score comes first.
    """
    ids: Mapping[str, int] = {piece.text: index for index, piece in enumerate(model.pieces)}
    if "\t" not in ids and any(text == "\t" for text, _ in scored):
        ids = {**ids, "\t": ids["<0x09>"]}
    found = []
    for text, score in dict(scored).items():
        splits = ((text[:at], text[at:]) for at in range(1, len(text)))
        pairs = [(left, right) for left, right in splits if left in ids and right in ids]
        found += [(score, pair) for pair in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    found.sort(key=lambda each: (each[0], len(each[1][0]), len(each[1][1])), reverse=True)
    return [list(pair) for _, pair in found]


def _normalizer(model: Model, published: Published) -> Component | None:
    name, config = published.kind.name, published.config
    table = [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}]
    table = table if model.charsmap else []
    lower: list[Component] = [{"type": "Lowercase"}]
    if name == "Gemma":
        return _replace(" ", _SPACE)
    if name == "Llama":
        prepend = [{"type": "Prepend", "prepend": _SPACE}] if _prefix_space(published) else []
        return _sequence([*prepend, _replace(" ", _SPACE)]) if _is_legacy(published) else None
    if name == "Albert":
        accents: list[Component] = [{"type": "NFKD"}, {"type": "StripAccents"}]
        kept = [] if config.get("keep_accents", False) else accents
        cased = lower if config.get("do_lower_case", True) else []
        quotes = [_replace("``", '"'), _replace("''", '"')]
        return _sequence([*quotes, *kept, *cased, *table, _SPACES_TO_ONE])
    if name == "DebertaV2":
        cased = lower if config.get("do_lower_case", False) else []
        strip = {"type": "Strip", "strip_left": True, "strip_right": True}
        return _sequence([*cased, strip, *table, _SPACES_TO_ONE])
    right = {"type": "Strip", "strip_left": False, "strip_right": True}
    return _sequence([*table, right, {**_SPACES_TO_ONE, "content": _SPACE}])


_SPACES_TO_ONE: Component = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


def _replace(pattern: str, content: str) -> Component:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _sequence(normalizers: list[Component]) -> Component:
    return {"type": "Sequence", "normalizers": normalizers}


def _pre_tokenizer(published: Published) -> Component | None:
    name = published.kind.name
    if name == "Gemma":
        pattern = {"String": " "}
        return {"type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": False}
    if name == "Llama":
        return None if _is_legacy(published) else {**_metaspace(published), "split": False}
    if name != "DebertaV2":
        return _metaspace(published)
    punctuation = {"type": "Punctuation", "behavior": "Isolated"}
    first = [punctuation] if published.config.get("split_by_punct", False) else []
    return {"type": "Sequence", "pretokenizers": [*first, _metaspace(published)]}


def _decoder(published: Published) -> Component:
    name = published.kind.name
    if name not in {"Llama", "Gemma"}:
        return _metaspace(published)
    parts: list[Component] = [_replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if name == "Llama" and _prefix_space(published):
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}


def _metaspace(published: Published) -> Component:
    scheme = "always" if _is_legacy(published) else "first"
    scheme = scheme if _prefix_space(published) else "never"
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": True}


def _is_legacy(published: Published) -> bool:
    """Whether a space is put before the text after each added token; if false, before the first text only."""
    if published.kind.name not in {"Llama", "T5", "MT5"}:
        return True
    return published.config.get("legacy") is not False


def _prefix_space(published: Published) -> bool:
    """Whether the tokenizer puts a space before a text."""
    if published.kind.name not in {"Llama", "T5", "MT5"}:
        return True
    return bool(published.config.get("add_prefix_space", True))
