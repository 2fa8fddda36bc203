"""Prompt templates of rerankers (data/rerank_templates.json): each makes one text from a query and a document."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import msgspec

from bei_core.errors import ConfigError, UnsupportedModelError
from bei_core.tasks import Templated

_FIELD = re.compile(r"\{(instruction|query|document)\}")
_CUSTOM = "custom"  # the name of a template that is given as its text or as JSON
_JSON = re.compile(r'\s*\{\s*"')
EXAMPLE = '{"template": "… {query} … {document} …", "tokens": ["no", "yes"]}'


class RerankTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt template with {query}, {document} and, if the model takes an instruction, {instruction}."""

    name: str
    template: str
    repositories: str = ""  # a regular expression for names of its models: of a repository, a folder or a class
    instruction: str = ""  # the default if a request gives none
    # The answers for no and yes of a causal language model; None for no: the score is the logit of yes.
    tokens: tuple[str | None, str] | None = None
    instructed: str = ""  # the template in place of `template` if there is an instruction; "": the same one
    strips: bool = False  # whether white space at both ends of what is filled in is removed
    add_special_tokens: bool = True  # whether the tokenizer adds its special tokens to the prompt
    uninstructed: str = ""  # why a chat template takes no instruction; "" if it has no place for one

    @property
    def takes_instruction(self) -> bool:
        """Whether there is a place for an instruction."""
        return "{instruction}" in (self.instructed or self.template)

    def fill(self, query: str, document: str, instruction: str | None = None) -> Templated:
        """Returns the prompt with the fields filled in; braces in a query or a document are not fields."""
        values = {"query": query, "document": document, "instruction": instruction or self.instruction}
        if self.strips:
            values = {field: text.strip() for field, text in values.items()}
        template, document = (values["instruction"] and self.instructed) or self.template, values["document"]
        head, tail = (
            _FIELD.sub(lambda field: values[field.group(1)], part) for part in template.split("{document}", maxsplit=1)
        )
        return Templated(head + document + tail, len(head), len(head) + len(document), self.add_special_tokens)


def find_template(source: str) -> RerankTemplate | None:
    """Returns the known template for the name of a repository, folder or class; None if there is none.

    A snapshot in the cache of the Hugging Face hub, `models--OWNER--NAME/snapshots/COMMIT`, has its repository's name.
    """
    *_, above, between, name = ["", "", *source.rstrip("/").split("/")]
    if between == "snapshots" and above.startswith("models--"):
        name = above
    return next((each for each in _known() if re.search(each.repositories, name, re.IGNORECASE)), None)


def named_template(text: str) -> RerankTemplate:
    """Returns the template for the setting rerank_template, which is a known name, a prompt, or JSON.

    Raises ConfigError for any other text.
    """
    if _JSON.match(text):
        return _own(text)
    if _is_whole(text):
        return RerankTemplate(_CUSTOM, text)
    found = next((each for each in _known() if each.name == text), None)
    if found is None:
        names = ", ".join(each.name for each in _known())
        raise ConfigError(
            f"rerank_template {text!r} is neither one of {names} nor a text with {{query}} and {{document}}, nor JSON "
            f"such as {EXAMPLE}"
        )
    return found


def chosen_template(setting: str | None, own: RerankTemplate | None, fault: str = "") -> RerankTemplate | None:
    """Returns the template of the setting; without a setting, the model's (`own`). The setting `none` gives None.

    `fault` says why the chat template of a model that needs it cannot be used; "" if it can, or the model needs none.
    Raises the errors of `named_template`, and ConfigError with the fault if there is no setting.
    """
    if setting is None and fault:
        raise ConfigError(
            f"{fault}; set rerank_template to the text that the model reads, with {{query}} and {{document}}, to one "
            f"of {', '.join(each.name for each in _known())}, or to none for the plain pair"
        )
    if setting is None or (own is not None and own.name == setting):
        return own
    found = None if setting == "none" else named_template(setting)
    is_own = own is not None and found is not None and found.template == own.template and not found.instruction
    return own if is_own else found  # with the instruction that the checkpoint gave its own


def with_instruction(template: RerankTemplate | None, prompt: str, file: str) -> RerankTemplate:
    """Returns the template with a CrossEncoder's default prompt as the instruction, as its chat template has it.

    A custom template keeps its own instruction. Raises UnsupportedModelError, which names the `file` of the prompt, if
    there is no template or it takes no instruction.
    """
    if template is None or not template.takes_instruction:
        reason = f"; {template.uninstructed}" if template is not None and template.uninstructed else ""
        raise UnsupportedModelError(
            f"{file}: default_prompt_name is supported for a CrossEncoder only where a rerank_template has a place for "
            f"the prompt, {{instruction}}{reason}"
        )
    if template.name == _CUSTOM and template.instruction:
        return template
    return msgspec.structs.replace(template, instruction=prompt)


def _own(text: str) -> RerankTemplate:
    """Returns the template in a JSON text. Raises ConfigError naming the wrong field."""
    try:
        found = msgspec.convert({"name": _CUSTOM, **msgspec.json.decode(text)}, RerankTemplate)
    except msgspec.DecodeError as fault:
        raise ConfigError(f"rerank_template: {fault}; write JSON such as {EXAMPLE}") from None
    for field, text in (("template", found.template), ("instructed", found.instructed or found.template)):
        if not _is_whole(text):
            raise ConfigError(f"rerank_template: `{field}` must contain {{query}} and {{document}}")
    if found.tokens is not None and ("" in found.tokens or found.tokens[0] == found.tokens[1]):
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
