"""Added tokens: the tokenizer finds each of them in a text as a whole, before it splits the rest of the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bei_core.text.published.folder import ADDITIONAL, ATTRIBUTES, Published, as_token


def add_tokens(tokenizer: Tokenizer, published: Published) -> dict[str, str]:
    """Adds the tokens that the files and the class name to `tokenizer`.

    Returns the special tokens by attribute, such as {"cls_token": "[CLS]"}. A token gets its id in the vocabulary, else
    the next free id, as in transformers.
    """
    named = _special_tokens(published)
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    tokens: list[str | AddedToken] = [
        token for _, token in sorted(published.added.items()) if repr(token) not in present
    ]
    known = [*(token.content for token in tokenizer.get_added_tokens_decoder().values()), *map(str, tokens)]
    specials = _unique([*named.values(), *_additional(published)])
    tokens += [token for token in specials if token not in known and token not in tokens]
    names = set(map(str, specials))
    tokenizer.add_tokens([_flagged(token, names) for token in tokens])
    return {name: str(token) for name, token in named.items()}


def named_tokens(published: Published) -> dict[str, str]:
    """Returns the special tokens that transformers 5 gives to a chat template by name.

    Such as {"cls_token": "[CLS]"}; beside those with an attribute, every other `..._token` and those that the files
    name themselves. Source: `special_tokens_map` in `tokenization_utils_base.py` of transformers 5.23. Raises
    CheckpointError for a token that is neither a text nor the JSON object of a token.
    """
    config = published.config
    found: dict[str, Any] = {
        name: value
        for name, value in config.items()
        if name.endswith("_token") and name not in ATTRIBUTES and isinstance(value, str | Mapping)
    }
    for field in ("model_specific_special_tokens", "extra_special_tokens"):
        named = config.get(field)
        found |= named if isinstance(named, Mapping) else {}
    tokens = {name: as_token(token) for name, token in found.items() if token is not None}
    return {name: str(token) for name, token in {**_special_tokens(published), **tokens}.items()}


def _special_tokens(published: Published) -> dict[str, str | AddedToken]:
    """Returns the special tokens that have an attribute, from the files, else from the class."""
    kind, config = published.kind, published.config
    found: dict[str, str | AddedToken] = {}
    for name in ATTRIBUTES:
        token = config[name] if name in config else kind.tokens.get(name)
        if isinstance(token, str) and name in kind.flags:
            token = AddedToken(token, **kind.flags[name])
        if token is not None:
            found[name] = token
    return found


def _additional(published: Published) -> list[str | AddedToken]:
    """Returns the special tokens that have no attribute (`additional_special_tokens`, `extra_special_tokens`)."""
    listed = published.config.get(ADDITIONAL)
    tokens = [as_token(token) for token in (published.kind.additional if listed is None else listed)]
    if listed is not None and "T5" in published.kind.name and not any("<extra_id_" in str(token) for token in tokens):
        tokens += published.kind.additional
    extra: Any = published.config.get("extra_special_tokens") or ()
    values = extra.values() if isinstance(extra, Mapping) else extra
    return tokens + [as_token(token) for token in values if token is not None]


def _unique(tokens: list[str | AddedToken]) -> list[str | AddedToken]:
    """Returns the tokens without those whose text an earlier token has."""
    found: dict[str, str | AddedToken] = {}
    for token in tokens:
        found.setdefault(str(token), token)
    return list(found.values())


def _flagged(token: str | AddedToken, specials: set[str]) -> AddedToken:
    """Returns the token, marked as special if its text is in `specials`."""
    special = str(token) in specials
    if isinstance(token, str):
        return AddedToken(token, special=special)
    token.special = token.special or special
    return token
