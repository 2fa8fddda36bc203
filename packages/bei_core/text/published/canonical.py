"""Makes the tokenizer.json that encodes as `AutoTokenizer.from_pretrained(folder)` did when the model was published."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer

from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.text.published.added import add_tokens
from bei_core.text.published.components import (
    Component,
    bert_normalizer,
    bos_eos_template,
    class_template,
    roberta_processor,
    with_prefix_space,
    without_types,
)
from bei_core.text.published.folder import TOKENIZER, Published, read_published
from bei_core.text.published.sentencepiece import read_sentencepiece
from bei_core.text.published.vocabulary import read_byte_pairs, read_wordpiece

# Part of the key by which a built engine is found again. Increment it when the same files would give another tokenizer.
RULES = 2


@dataclass(frozen=True, slots=True)
class CanonicalTokenizer:
    """The content of a tokenizer.json."""

    text: str

    @property
    def digest(self) -> str:
        """The first 32 hex digits of its SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Writes the content to a file."""
        path.write_text(self.text, encoding="utf-8")


def check_tokenizer(folder: Path) -> None:
    """Raises the errors of `canonical_tokenizer` as far as they can be found without building the tokenizer."""
    published = read_published(folder)
    if not published.has_file:
        _check_vocabulary(published)


def canonical_tokenizer(folder: Path) -> CanonicalTokenizer:
    """Returns the tokenizer of a model folder, made from all of its files.

    Raises CheckpointError if a file is missing or malformed, UnsupportedModelError if the tokenizer's class is not in
    `classes.py`.
    """
    published = read_published(folder)
    tokenizer = _open(published)
    tokens = add_tokens(tokenizer, published)
    state: Component = json.loads(tokenizer.to_str())
    _adjust(state, published, tokens, tokenizer)
    if not _gives_types(published):
        state["post_processor"] = without_types(state["post_processor"])
    if published.config.get("split_special_tokens"):
        state["added_tokens"] = _without_special(state, tokenizer)
    state["truncation"], state["padding"] = _truncation(published, state), None
    return CanonicalTokenizer(_parsed(json.dumps(state), folder).to_str())


def special_token_ids(folder: Path) -> dict[str, int]:
    """The ids of the special tokens that the files of a model folder name, such as {"cls_token": 0}.

    Raises as `canonical_tokenizer`.
    """
    published = read_published(folder)
    tokenizer = _open(published)
    ids = {name: tokenizer.token_to_id(token) for name, token in add_tokens(tokenizer, published).items()}
    return {name: number for name, number in ids.items() if number is not None}


def static_tokenizer(folder: Path) -> CanonicalTokenizer:
    """Returns the tokenizer of static embeddings: tokenizer.json, but without special tokens around a text.

    Raises CheckpointError if the file is missing or malformed.
    """
    try:
        text = (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise CheckpointError(f"{folder / TOKENIZER} cannot be read: {fault}") from fault
    state: Component = json.loads(_parsed(text, folder).to_str())
    if (state["truncation"] or {}).get("direction") != "Left":
        state["truncation"] = None
    return CanonicalTokenizer(_parsed(json.dumps({**state, "post_processor": None, "padding": None}), folder).to_str())


def _open(published: Published) -> Tokenizer:
    """Returns the tokenizer of tokenizer.json or of the vocabulary files, before tokenizer_config.json is applied."""
    if published.has_file and not _rebuilds(published):
        path = published.folder / TOKENIZER
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            raise CheckpointError(f"{path} cannot be read: {fault}") from fault
        return _parsed(text, published.folder)
    _check_vocabulary(published)
    read = {"wordpiece": read_wordpiece, "sentencepiece": read_sentencepiece}
    return _parsed(json.dumps(read.get(published.kind.source, read_byte_pairs)(published)), published.folder)


def _rebuilds(published: Published) -> bool:
    """Whether the class ignores tokenizer.json and reads its sentencepiece model, as `add_prefix_space` makes it do."""
    kind, config = published.kind, published.config
    asked = kind.name in {"Llama", "T5", "MT5"} and config.get("add_prefix_space") is not None
    return asked and not published.by_version_5 and (published.folder / kind.vocab_file).is_file()


def _parsed(text: str, folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as fault:  # the library raises bare Exception
        raise CheckpointError(
            f"{folder / TOKENIZER} is not a tokenizer that `tokenizers` {tokenizers.__version__} reads: {fault}"
        ) from fault


def _check_vocabulary(published: Published) -> None:
    """Raises UnsupportedModelError if the folder lacks the vocabulary files of the class, or the class has none."""
    kind = published.kind
    wanted = [kind.vocab_file] if kind.vocab_file else []
    wanted += ["merges.txt"] if kind.vocab_file == "vocab.json" else []
    missing = [name for name in wanted if not (published.folder / name).is_file()]
    if not wanted or missing:
        needs = f", nor {' and '.join(wanted)} for {kind.name}Tokenizer" if wanted else ""
        raise UnsupportedModelError(
            f"{published.folder} has no {TOKENIZER}{needs}; write {TOKENIZER} with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )


def _adjust(state: Component, published: Published, tokens: dict[str, str], tokenizer: Tokenizer) -> None:
    """Changes in `state` (a tokenizer.json) what the class changes after it has read the file."""
    kind, config, ids = published.kind, published.config, tokenizer.token_to_id
    if state["post_processor"] is None:
        state["post_processor"] = class_template(kind, tokens, ids)
    if kind.adjustment in {"bert", "mpnet"}:
        state["normalizer"] = bert_normalizer(config, state["normalizer"], chinese=kind.adjustment == "bert")
    if kind.adjustment in {"roberta", "prefix space"} or "add_prefix_space" in config:
        wanted = bool(config.get("add_prefix_space", False))
        state["pre_tokenizer"] = with_prefix_space(state["pre_tokenizer"], add=wanted)
    if kind.adjustment == "roberta":
        state["post_processor"] = roberta_processor(config, state["post_processor"])
    if published.adds_eos or (kind.adjustment == "bos and eos" and not _says_nothing(published)):
        state["post_processor"] = bos_eos_template(kind, config, tokens, ids)


def _says_nothing(published: Published) -> bool:
    """Whether transformers 5 wrote the files without these flags; tokenizer.json then adds the tokens itself."""
    return published.by_version_5 and not {"add_bos_token", "add_eos_token"} & published.config.keys()


def _gives_types(published: Published) -> bool:
    """Whether the tokenizer gives the model token types."""
    names: Any = published.config.get("model_input_names")
    if names is not None:
        return "token_type_ids" in names
    return published.kind.has_types and not (published.by_version_5 and published.kind.name in _TYPELESS_IN_5)


_TYPELESS_IN_5 = {"Albert", "Herbert", "PreTrained"}


def _without_special(state: Component, tokenizer: Tokenizer) -> list[Component]:
    """Returns the added tokens that are not special: with `split_special_tokens`, a special token in a text is split.

    Raises UnsupportedModelError if a special token is not in the vocabulary: it could not be put around a text.
    """
    special = [token for token in state["added_tokens"] if token["special"]]
    model = tokenizer.get_vocab(with_added_tokens=False)
    outside = [token["content"] for token in special if model.get(token["content"]) != token["id"]]
    if outside:
        raise UnsupportedModelError(
            f"tokenizer_config.json: split_special_tokens is not supported, because the vocabulary lacks the special "
            f"tokens {', '.join(outside)}"
        )
    return [token for token in state["added_tokens"] if not token["special"]]


def _truncation(published: Published, state: Component) -> Component | None:
    """Returns the truncation of tokenizer.json if a text that is too long loses its beginning, else None.

    The length in it is never reached: the limit is the model's. Raises CheckpointError for an unknown side.
    """
    present = state["truncation"] or {}
    side = published.config.get("truncation_side") or str(present.get("direction", "right")).lower()
    if side == "right":
        return None
    if side != "left":
        raise CheckpointError(f"tokenizer_config.json: truncation_side is {side!r}; expected left or right")
    return {"direction": "Left", "max_length": 1 << 30, "strategy": "LongestFirst", "stride": 0}
