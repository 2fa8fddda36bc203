"""Makes a rerank template of the chat template in a model folder, as CrossEncoder of sentence-transformers applies it.

The chat template is rendered when the model is read, and never for a request: once with texts that mark the places of
query, document and instruction, and then with other texts, for which the rerank template has to give the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.text.published import named_tokens, read_published
from bei_core.text.sandbox import MAX_SOURCE_BYTES, Rendered, render
from bei_core.text.templates import RerankTemplate

MessageFormat: TypeAlias = Literal["flat", "structured"]  # whether a message is a text or a list of parts
Texts: TypeAlias = Mapping[str, str]  # the text of each role

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
_NAME = "chat template"
_FIELDS = {"system": "{instruction}", "query": "{query}", "document": "{document}"}  # by the role of the message

# What messages have: a mark of the place; a long text that most changes would show in; nothing.
_MARKS = {role: f"\ue000{field}\ue001" for role, field in _FIELDS.items()}
_LONG = "".join(f"{number} " for number in range(6000))  # 28,890 characters, no two parts of which are the same
_LONGER = {"system": "", "query": _LONG, "document": _LONG}
_ODD = {
    role: f' \n\t{role} <b>"Aß"</b> & {{{{ it\'s }}}} {{% x %}} \\n é {text} z. \n ' for role, text in _LONGER.items()
}
_EMPTY = {**_ODD, "query": "", "document": ""}


class _Named(msgspec.Struct):
    """One of several chat templates in tokenizer_config.json."""

    name: str
    template: str


def read_chat_template(folder: Path, form: MessageFormat, arguments: Mapping[str, Any]) -> RerankTemplate | None:
    """Returns the chat template of a folder as a rerank template; None if there is none.

    `arguments` are the variables that the folder's files give to the template. Raises CheckpointError for a malformed
    file, UnsupportedModelError for a template that cannot be rendered or that no rerank template equals, SandboxError
    if the process that renders fails.
    """
    if not (folder / FILE).is_file() and not (folder / CONFIG).is_file():
        return None
    published = read_published(folder)
    found = _source(folder, published.config)
    if found is None:
        return None
    file, source = found
    given = {"tools": None, "documents": None, "add_generation_prompt": False, **named_tokens(published), **arguments}
    roles = (("query", "document"), ("system", "query", "document"))
    calls = list(product(roles, (_MARKS, _ODD, _EMPTY)))
    try:
        rendered = render(source, [{**given, "messages": _messages(*call, form)} for call in calls])
        template = _template(rendered[:3])
    except UnsupportedModelError as fault:
        raise type(fault)(f"{file}: the chat template {fault}") from None
    return _with_instruction(template, rendered[3:])


def _source(folder: Path, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns the file that has the chat template, and the template; None if there is none.

    As in transformers, chat_template.jinja counts before tokenizer_config.json (`config`), and of several templates the
    one that is named default.
    """
    file = FILE if (folder / FILE).is_file() else CONFIG
    try:
        found = _of_config(config) if file == CONFIG else (folder / FILE).read_text(encoding="utf-8")
        size = len((found or "").encode())
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{file}: the chat template cannot be read: {fault}") from fault
    if size > MAX_SOURCE_BYTES:
        raise UnsupportedModelError(f"{file}: the chat template has more than {MAX_SOURCE_BYTES} bytes")
    return None if found is None else (file, found)


def _of_config(config: Mapping[str, Any]) -> str | None:
    """Returns the chat template in tokenizer_config.json. Raises CheckpointError if it is malformed."""
    try:
        found = msgspec.convert(config.get("chat_template"), str | list[_Named] | None)
    except msgspec.ValidationError as fault:
        raise CheckpointError(f"{CONFIG}: chat_template is neither a text nor a list of named texts: {fault}") from None
    if not isinstance(found, list):
        return found
    return {each.name: each.template for each in found}.get("default")


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
    """Returns the template with the prompt for an instruction, else with the reason why it takes none."""
    fault = next((each.fault and f"cannot be rendered: {each.fault}" for each in rendered if each.fault), "")
    try:
        text = "" if fault else _with_fields(rendered[0].text)
    except UnsupportedModelError as error:
        text, fault = "", str(error)
    instructed = msgspec.structs.replace(template, instructed=text)
    if instructed.takes_instruction and _gives(instructed, rendered, instruction=True):
        return instructed
    if instructed.takes_instruction:
        fault = "changes the text of a message of the role system, or other texts where there is one"
    return msgspec.structs.replace(template, uninstructed=fault and f"with an instruction, the chat template {fault}")
