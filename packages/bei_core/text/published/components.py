"""The parts of a tokenizer.json that tokenizer_config.json or the class decide: normalizer, pre- and post-processor.

Each is JSON as the library `tokenizers` writes it. A template is a post-processor of type TemplateProcessing: it says
which special tokens are put around one text and around a pair, and the token type of each part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from bei_core.errors import CheckpointError
from bei_core.text.published.classes import TokenizerClass

Component: TypeAlias = dict[str, Any]
Ids: TypeAlias = Callable[[str], int | None]  # of a token's text
Config: TypeAlias = Mapping[str, Any]

_BERT_FLAGS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}
_BERT_DEFAULTS = {"lowercase": True, "strip_accents": None, "handle_chinese_chars": True}


def bert_normalizer(config: Config, present: Component | None, *, chinese: bool = True) -> Component | None:
    """Returns BERT's normalizer with the flags of tokenizer_config.json in place of those of tokenizer.json.

    If `chinese` is false, the flag `tokenize_chinese_chars` is ignored. A normalizer of another type is returned
    unchanged.
    """
    wanted = {name: config.get(key, _BERT_DEFAULTS[name]) for name, key in _BERT_FLAGS.items()}
    if present is None:
        return {"type": "BertNormalizer", "clean_text": True, **wanted}
    if present.get("type") != "BertNormalizer":
        return present
    if not chinese:
        del wanted["handle_chinese_chars"]
    return {**present, **wanted}


def with_prefix_space(component: Component | None, *, add: bool) -> Component | None:
    """Returns the component with `add_prefix_space` set to `add`; unchanged if it has no such flag."""
    if component is None or "add_prefix_space" not in component:
        return component
    return {**component, "add_prefix_space": add}


def roberta_processor(config: Config, present: Component | None) -> Component | None:
    """Returns RoBERTa's post-processor with the flags of tokenizer_config.json, which change offsets but not ids."""
    changed = with_prefix_space(present, add=bool(config.get("add_prefix_space", False)))
    if changed is None or "trim_offsets" not in changed:
        return changed
    return {**changed, "trim_offsets": bool(config.get("trim_offsets", True))}


def class_template(kind: TokenizerClass, tokens: Mapping[str, str], ids: Ids) -> Component | None:
    """Returns the template of a class, for a tokenizer without post-processor; None if the class adds no tokens.

    Raises CheckpointError if a special token of the template is not named or not in the vocabulary.
    """
    if kind.template is None:
        return None
    if kind.template == "eos after each":
        eos = tokens.get("eos_token", "</s>")
        return template(["A", eos], ["B", eos], ids)
    begin, end = tokens.get("cls_token"), tokens.get("sep_token")
    if begin is None or end is None:
        raise CheckpointError(f"the tokenizer of class {kind.name}Tokenizer has no cls_token or no sep_token")
    if kind.template == "two separators":
        return template([begin, "A", end], [end, "B", end], ids)
    return template([begin, "A", end], ["B", end], ids, second_type=1)


def bos_eos_template(kind: TokenizerClass, config: Config, tokens: Mapping[str, str], ids: Ids) -> Component:
    """Returns the template of `add_bos_token` and `add_eos_token`, which puts both around each text of a pair.

    Raises CheckpointError if a wanted token is not named or not in the vocabulary.
    """
    parts: list[list[str]] = []
    for name, default in (("bos_token", kind.add_bos), ("eos_token", False)):
        wanted = bool(config.get(f"add_{name}", default))
        if wanted and name not in tokens:
            raise CheckpointError(f"tokenizer_config.json has add_{name}: true, but no {name}")
        parts.append([tokens[name]] if wanted else [])
    begin, end = parts
    return template([*begin, "A", *end], [*begin, "B", *end], ids, second_type=1)


def template(first: Sequence[str], second: Sequence[str], ids: Ids, *, second_type: int = 0) -> Component:
    """Returns a TemplateProcessing: `first` for one text, `first` followed by `second` for a pair.

    "A" and "B" stand for the texts, and everything else is a token. `second_type` is the token type of all parts of
    `second`. Raises CheckpointError for a token that the vocabulary does not have.
    """
    single = [_piece(part, 0) for part in first]
    tokens = [part for part in dict.fromkeys([*first, *second]) if part not in {"A", "B"}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + [_piece(part, second_type) for part in second],
        "special_tokens": {token: _special(token, ids(token)) for token in tokens},
    }


def without_types(processor: Component | None) -> Component:
    """Returns the post-processor with token type 0 for every token, for a model whose tokenizer gives no token types.

    Without a template, `tokenizers` gives the second text of a pair type 1, so a template is added if there is none.
    """
    plain = template(["A"], ["B"], lambda _: None)
    if processor is None:
        return plain
    kind = processor["type"]
    if kind == "TemplateProcessing":
        return {**processor, **{key: [_typeless(piece) for piece in processor[key]] for key in ("single", "pair")}}
    if kind == "BertProcessing":
        (sep, _), (cls, _) = processor["sep"], processor["cls"]
        ids: dict[str, int] = dict([processor["sep"], processor["cls"]])
        return template([cls, "A", sep], ["B", sep], lambda token: ids[token])
    if kind == "RobertaProcessing":
        return processor
    inner: list[Component] = processor["processors"] if kind == "Sequence" else [processor]
    if not any(each["type"] in _PLACES_TEXTS for each in inner):
        return {"type": "Sequence", "processors": [*inner, plain]}
    changed = [without_types(each) if each["type"] in _PLACES_TEXTS else each for each in inner]
    return {"type": "Sequence", "processors": changed}


_PLACES_TEXTS = {"TemplateProcessing", "BertProcessing", "RobertaProcessing"}


def _special(token: str, number: int | None) -> Component:
    if number is None:
        raise CheckpointError(f"the vocabulary has no {token!r}, which the tokenizer puts around a text")
    return {"id": token, "ids": [number], "tokens": [token]}


def _piece(part: str, type_id: int) -> Component:
    kind = "Sequence" if part in {"A", "B"} else "SpecialToken"
    return {kind: {"id": part, "type_id": type_id}}


def _typeless(piece: Component) -> Component:
    return {name: {**value, "type_id": 0} for name, value in piece.items()}
