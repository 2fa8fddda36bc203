"""Makes a rerank template of the chat template in a model folder, as CrossEncoder of sentence-transformers applies it.

The chat template is rendered when the model is read, and never for a request: once with texts that mark the places of
query, document and instruction, and then with other texts, for which the rerank template has to give the same prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.text.published import special_tokens
from bei_core.text.sandbox import MAX_SOURCE_BYTES, Rendered, render
from bei_core.text.templates import RerankTemplate

MessageFormat: TypeAlias = Literal["flat", "structured"]  # whether a message is a text or a list of parts
Texts: TypeAlias = Mapping[str, str]  # the text of each role

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
_NAME = "chat template"
_FIELDS = {"system": "{instruction}", "query": "{query}", "document": "{document}"}  # by the role of the message

# What messages have: a mark of the place; a text that most changes would show in; nothing.
_MARKS = {role: f"\ue000{field}\ue001" for role, field in _FIELDS.items()}
_ODD = {role: f' \n\t{role} <b>"Aß"</b> & {{{{ it\'s }}}} {{% x %}} \\n é  z. \n ' for role in _FIELDS}
_EMPTY = {**_ODD, "query": "", "document": ""}


def read_chat_template(folder: Path, form: MessageFormat, arguments: Mapping[str, Any]) -> RerankTemplate | None:
    """Returns the chat template of a folder as a rerank template; None if there is none.

    `arguments` are the variables that the folder's files give to the template. Raises CheckpointError for a malformed
    file, UnsupportedModelError for a template that cannot be rendered or that no rerank template equals.
    """
    found = _source(folder)
    if found is None:
        return None
    file, source = found
    if len(source.encode()) > MAX_SOURCE_BYTES:
        raise UnsupportedModelError(f"{file}: the chat template has more than {MAX_SOURCE_BYTES} bytes")
    given = {"tools": None, "documents": None, "add_generation_prompt": False, **special_tokens(folder), **arguments}
    roles = (("query", "document"), ("system", "query", "document"))
    calls = list(product(roles, (_MARKS, _ODD, _EMPTY)))
    try:
        rendered = render(source, [{**given, "messages": _messages(*call, form)} for call in calls])
        template = _template(rendered[:3])
    except UnsupportedModelError as fault:
        raise UnsupportedModelError(f"{file}: the chat template {fault}") from None
    return _with_instruction(template, rendered[3:])


def _source(folder: Path) -> tuple[str, str] | None:
    """Returns the file that has the chat template, and the template; None if there is none.

    As in transformers, chat_template.jinja counts before tokenizer_config.json, and of several templates the one that
    is named default.
    """
    try:
        if (folder / FILE).is_file():
            return FILE, (folder / FILE).read_text(encoding="utf-8")
        config = json.loads((folder / CONFIG).read_bytes()) if (folder / CONFIG).is_file() else {}
    except (OSError, ValueError, RecursionError) as fault:
        raise CheckpointError(f"{folder}: the chat template cannot be read: {fault}") from fault
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"{CONFIG}: chat_template is neither a text nor a list of named texts")
    return None if found is None else (CONFIG, found)


def _messages(roles: Sequence[str], texts: Texts, form: MessageFormat) -> list[dict[str, Any]]:
    """Returns the messages that CrossEncoder makes of a query, a document and its prompt, which is the instruction."""
    parts = {role: texts[role] if form == "flat" else [{"type": "text", "text": texts[role]}] for role in roles}
    return [{"role": role, "content": content} for role, content in parts.items()]


def _template(rendered: Sequence[Rendered]) -> RerankTemplate:
    """Returns the template that gives the same prompts, from those with marks, odd texts and empty texts.

    Raises UnsupportedModelError, whose text goes on after "the chat template", if there is none.
    """
    for each in rendered:
        if each.fault:
            raise UnsupportedModelError(f"cannot be rendered: {each.fault}")
    text = _with_fields(rendered[0].text)
    for strips in (False, True):
        template = RerankTemplate(_NAME, text, strips=strips, add_special_tokens=False)
        if _gives(template, rendered, instruction=False):
            return template
    raise UnsupportedModelError("changes the text of the query or of the document")


def _with_fields(text: str) -> str:
    """Returns a prompt with fields in place of the marks. Raises UnsupportedModelError if one is missing or double."""
    if any(text.count(field) != text.count(_MARKS[role]) for role, field in _FIELDS.items()):
        raise UnsupportedModelError(f"has {' or '.join(_FIELDS.values())} in its own text, or changes the messages")
    counts = {role: text.count(mark) for role, mark in _MARKS.items()}
    if not counts["query"] or counts["document"] != 1:
        raise UnsupportedModelError(
            f"has the content of the role query {counts['query']} times and that of the role document "
            f"{counts['document']} times; it needs both, and the document once"
        )
    for role, mark in _MARKS.items():
        text = text.replace(mark, _FIELDS[role])
    return text


def _gives(template: RerankTemplate, rendered: Sequence[Rendered], *, instruction: bool) -> bool:
    """Whether a template gives the prompts with odd and empty texts."""
    return all(
        template.fill(texts["query"], texts["document"], texts["system"] if instruction else None).text == each.text
        for texts, each in zip((_ODD, _EMPTY), rendered[1:], strict=True)
    )


def _with_instruction(template: RerankTemplate, rendered: Sequence[Rendered]) -> RerankTemplate:
    """Returns the template with the prompt for an instruction; the same one if the chat template takes none."""
    try:
        text = _with_fields(rendered[0].text)
    except UnsupportedModelError:
        return template
    instructed = msgspec.structs.replace(template, instructed=text)
    fits = instructed.takes_instruction and _gives(instructed, rendered, instruction=True)
    return instructed if fits else template
