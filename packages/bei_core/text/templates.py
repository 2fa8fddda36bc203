"""Templates that make one text of a reranker's query and document; which model has which is data."""

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
    """A prompt with {query}, {document} and, where the model takes one, {instruction}."""

    name: str
    template: str
    repositories: str = ""  # regular expression, of what a repository or folder of such a model has in its name
    instruction: str = ""  # where a request gives none
    tokens: tuple[str, str] | None = None  # what a causal language model answers for no and for yes

    def fill(self, query: str, document: str, instruction: str | None = None) -> Templated:
        """The text. What looks like a field inside of a query or a document is left as it is."""
        values = {"query": query, "document": document, "instruction": instruction or self.instruction}
        head, tail = (
            _FIELD.sub(lambda field: values[field.group(1)], part)
            for part in self.template.split("{document}", maxsplit=1)
        )
        return Templated(head + document + tail, len(head), len(head) + len(document))


def find_template(source: str) -> RerankTemplate | None:
    """The template for a repository or folder, by its name."""
    name = source.rstrip("/").rpartition("/")[2]
    return next((each for each in _known() if re.search(each.repositories, name, re.IGNORECASE)), None)


def named_template(text: str) -> RerankTemplate:
    """The template of a name, of its own text, or of JSON with the fields of one. Raises ConfigError saying so."""
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
    """What `Settings.rerank_template` means for a model with a template of its own. Raises as `named_template`."""
    if setting is None:
        return own
    return None if setting == "none" else named_template(setting)


def _own(text: str) -> RerankTemplate:
    """The template that JSON describes. Raises ConfigError naming the field that is wrong."""
    try:
        found = msgspec.convert({"name": "custom", **msgspec.json.decode(text)}, RerankTemplate)
    except msgspec.DecodeError as fault:
        raise ConfigError(f"rerank_template: {fault}; it would be JSON such as {EXAMPLE}") from None
    if not _is_whole(found.template):
        raise ConfigError("rerank_template: `template` must hold {query} and {document}")
    if found.tokens is not None and (not all(found.tokens) or found.tokens[0] == found.tokens[1]):
        raise ConfigError("rerank_template: `tokens` are two different words, what the model says for no and for yes")
    return found


def _is_whole(text: str) -> bool:
    return "{document}" in text and "{query}" in text


@cache
def _known() -> tuple[RerankTemplate, ...]:
    text = files("bei_core").joinpath("data/rerank_templates.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[RerankTemplate, ...])
