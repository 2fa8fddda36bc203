"""Prompt templates of rerankers (data/rerank_templates.json): each makes one text from a query and a document."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import msgspec

from bei_core.errors import ConfigError
from bei_core.tasks import Templated

_FIELD = re.compile(r"\{(instruction|query|document)\}")
_JSON = re.compile(r'\s*\{\s*"')
EXAMPLE = '{"template": "… {query} … {document} …", "tokens": ["no", "yes"]}'


class RerankTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt template with {query}, {document} and, if the model takes an instruction, {instruction}."""

    name: str
    template: str
    repositories: str = ""  # a regular expression for the repository and folder names of its models
    instruction: str = ""  # the default if a request gives none
    tokens: tuple[str, str] | None = None  # the answers for no and yes of a causal language model

    def fill(self, query: str, document: str, instruction: str | None = None) -> Templated:
        """Returns the prompt with the fields filled in; braces in a query or a document are not fields."""
        values = {"query": query, "document": document, "instruction": instruction or self.instruction}
        head, tail = (
            _FIELD.sub(lambda field: values[field.group(1)], part)
            for part in self.template.split("{document}", maxsplit=1)
        )
        return Templated(head + document + tail, len(head), len(head) + len(document))


def find_template(source: str) -> RerankTemplate | None:
    """Returns the known template for the name of a repository or folder; None if there is none."""
    name = source.rstrip("/").rpartition("/")[2]
    return next((each for each in _known() if re.search(each.repositories, name, re.IGNORECASE)), None)


def named_template(text: str) -> RerankTemplate:
    """Returns the template for the setting rerank_template, which is a known name, a prompt, or JSON.

    Raises ConfigError for any other text.
    """
    if _JSON.match(text):
        return _own(text)
    if _is_whole(text):
        return RerankTemplate("custom", text)
    found = next((each for each in _known() if each.name == text), None)
    if found is None:
        names = ", ".join(each.name for each in _known())
        raise ConfigError(
            f"rerank_template {text!r} is neither one of {names} nor a text with {{query}} and {{document}}, nor JSON "
            f"such as {EXAMPLE}"
        )
    return found


def chosen_template(setting: str | None, own: RerankTemplate | None) -> RerankTemplate | None:
    """Returns the template of the setting; without a setting, the model's (`own`). The setting `none` gives None.

    Raises the errors of `named_template`.
    """
    if setting is None:
        return own
    return None if setting == "none" else named_template(setting)


def _own(text: str) -> RerankTemplate:
    """Returns the template in a JSON text. Raises ConfigError naming the wrong field."""
    try:
        found = msgspec.convert({"name": "custom", **msgspec.json.decode(text)}, RerankTemplate)
    except msgspec.DecodeError as fault:
        raise ConfigError(f"rerank_template: {fault}; write JSON such as {EXAMPLE}") from None
    if not _is_whole(found.template):
        raise ConfigError("rerank_template: `template` must contain {query} and {document}")
    if found.tokens is not None and (not all(found.tokens) or found.tokens[0] == found.tokens[1]):
        raise ConfigError(
            "rerank_template: `tokens` must be two different words: the model's answers for no and for yes"
        )
    return found


def _is_whole(text: str) -> bool:
    """Whether a prompt has both fields that every template needs."""
    return "{document}" in text and "{query}" in text


@cache
def _known() -> tuple[RerankTemplate, ...]:
    text = files("bei_core").joinpath("data/rerank_templates.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[RerankTemplate, ...])
