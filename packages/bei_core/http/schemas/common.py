"""Parts that the APIs share: decoding of bodies, options for tokenization, inputs, and parts of replies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from bei_core.errors import MalformedBodyError, RequestError, ValidationError
from bei_core.http.json_schema import INTEGER, NUMBER, STRING, array_of, object_of
from bei_core.metrics import Timings
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Classify, EncodeOptions, Pair, Rows, Scoring, Task, Text, TruncationSide, best_first
from bei_core.text.refusals import no_texts

ValueT = TypeVar("ValueT")

# A text, token ids, or a list of either. msgspec allows one array type per union, so `inputs_of` refuses mixtures.
Input: TypeAlias = str | list[str | int | list[int]]
Truncate: TypeAlias = bool | Literal["NONE", "START", "END"]  # the strings are those of Cohere and NIM

LABELS = array_of(object_of(label=STRING, score=NUMBER))  # of `labelled`
USAGE = object_of(prompt_tokens=INTEGER, total_tokens=INTEGER)  # of `usage`

# Why a body of vLLM's with `messages` is refused.
NO_CHATS = "is not supported: apply the chat template in the client, and send the text with `add_special_tokens: false`"

_MESSAGES = re.compile(rb'"messages"\s*:')
_NAMES, _MISSING = re.compile(r"\.(\w+)"), re.compile(r"field `(\w+)`")
_TRUNCATED = "Input data was truncated"  # msgspec's text, also for the first half of a surrogate pair at a text's end
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # ValidationError is a DecodeError
_SIDES = {"right": TruncationSide.RIGHT, "left": TruncationSide.LEFT}
_CUT_SIDES = {"END": TruncationSide.RIGHT, "START": TruncationSide.LEFT}  # by `truncate`


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The data that a reply may contain besides the model's result."""

    model: ServedModel
    request_id: str
    is_by_fields: bool = False  # the client sends all bodies to one path, as Hugging Face's clients do


class Body(Protocol):
    """A body that the model answers: the schema of a route whose `answer` is None."""

    kinds: ClassVar[tuple[Kind, ...]]
    model: Any  # as in `Named`

    def to_task(self, model: ServedModel) -> Task[Any]:
        """Returns the task of the body. Raises a RequestError if the body is not valid for the model."""
        ...

    def to_reply(self, result: Result[Any], context: RequestContext) -> object:
        """Returns the value of the reply's body: JSON values and NumPy arrays."""
        ...


class Named(msgspec.Struct, kw_only=True):
    """A body that may name a model. `Route.schema` is such a struct."""

    kinds: ClassVar[tuple[Kind, ...]] = ()  # the kinds of model that can answer; none: any

    model: Any = None  # for a server of several models; anything but a text is ignored


class Common(Named, kw_only=True):
    """A body with texts to encode."""

    truncate: Truncate | None = None
    truncation_direction: str | None = None  # as the model was published
    prompt_name: str | None = None
    chunk: bool = False
    max_tokens_per_doc: Annotated[int, msgspec.Meta(ge=1)] | None = None
    add_special_tokens: bool | None = None  # vLLM's name; true

    @property
    def truncates(self) -> bool | None:
        """Whether `truncate` asks to truncate texts that are too long; None if it is not given."""
        return None if self.truncate is None else self.truncate not in (False, "NONE")

    def encode_options(
        self, model: ServedModel, *, prompt_name: str | None = None, spans: bool = False
    ) -> EncodeOptions:
        """Returns the options to tokenize the texts; `prompt_name` is the prompt of an input type.

        Raises ValidationError for an unknown prompt or side, and for two names of one option that differ.
        """
        default, truncates, name = model.default_options, self.truncates, prompt_name or self.prompt_name
        if prompt_name and self.prompt_name and self.prompt_name != prompt_name:
            message = f"`prompt_name` and the input type name two prompts, {self.prompt_name!r} and {prompt_name!r}"
            raise ValidationError(message, param="prompt_name")
        side = None
        if truncates is not None or self.truncation_direction is not None:
            side = side_of(self.truncate, truncation_direction=self.truncation_direction)
        prompt = default.prompt if name is None else model.prompt(name)
        return EncodeOptions(
            default.truncate if truncates is None else truncates,
            side,
            prompt,
            default.pool_prompt,
            self.chunk,
            self.max_tokens_per_doc,
            spans,
            add_special_tokens=self.add_special_tokens is not False,
        )


class PipelineParameters(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What Hugging Face's clients send in `parameters` for the tokenizer of any pipeline."""

    truncation: bool | Literal["longest_first", "do_not_truncate"] | None = None  # a name of `truncate`
    max_length: Annotated[int, msgspec.Meta(ge=1)] | None = None  # of an input's tokens, with special tokens
    padding: bool | Literal["longest", "max_length", "do_not_pad"] | None = None  # changes no result

    def applied(self, body: Common, options: EncodeOptions) -> EncodeOptions:
        """Returns the options of a body with these. Raises ValidationError if they contradict its `truncate`."""
        truncates = None if self.truncation is None else self.truncation not in (False, "do_not_truncate")
        limited = None if self.max_length is None else True  # transformers truncates to it without `truncation` too
        names = {"truncate": body.truncates, "parameters.truncation": truncates, "parameters.max_length": limited}
        asked: bool | None = agreed(**names)
        return options if asked is None else replace(options, truncate=asked, max_tokens=self.max_length)


def decode(raw: bytes, schema: type[ValueT]) -> ValueT:
    """Decodes a JSON body into `schema`.

    Raises MalformedBodyError if it is not JSON, ValidationError naming a field of the wrong type.
    """
    try:
        return msgspec.json.decode(raw, type=schema)
    except _FAULTS as fault:
        raise _body_error(fault, schema, raw, is_chat=_MESSAGES.search(raw) is not None) from fault


def convert(value: object, schema: type[ValueT]) -> ValueT:
    """Converts a decoded body to `schema`; raises the same errors as `decode`."""
    try:
        return msgspec.convert(value, schema)
    except _FAULTS as fault:
        raise _body_error(fault, schema) from fault


def inputs_of(value: Input) -> list[Text]:
    """Returns the inputs of a body. A list of numbers is one input: the token ids of one text.

    Raises EmptyInputError if there are none, ValidationError if token ids and texts are mixed.
    """
    if isinstance(value, str):
        return [value]
    if not value:
        raise no_texts()
    numbers = sum(isinstance(item, int) for item in value)
    if numbers == 0:
        return value  # type: ignore[return-value]
    if numbers < len(value):
        raise ValidationError("`inputs` mixes token ids with texts; put the ids of each text in a list", param="inputs")
    return [value]  # type: ignore[list-item]


def texts_of(value: str | Sequence[str]) -> list[str]:
    """Returns one or several texts as a list. Raises EmptyInputError if there are none."""
    texts = [value] if isinstance(value, str) else list(value)
    if not texts:
        raise no_texts()
    return texts


def classify(items: Sequence[str | list[str]], options: EncodeOptions, scoring: Scoring) -> Classify:
    """Returns the task to score texts and pairs; a pair is a list of two texts.

    Raises EmptyInputError if there are none, ValidationError for a list of another length.
    """
    if not items:
        raise no_texts()
    return Classify([_text_or_pair(item) for item in items], options, scoring)


def labelled(rows: Rows, labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Returns `[[{label, score}]]`, one list per row, the best label first."""
    return [[{"label": labels[index], "score": float(row[index])} for index in best_first(row)] for row in rows]


def usage(timings: Timings) -> dict[str, int]:
    """Returns the `usage` of OpenAI, Jina and Infinity: numbers of tokens after truncation, with special tokens."""
    return {"prompt_tokens": timings.num_tokens, "total_tokens": timings.num_tokens}


def _text_or_pair(item: str | list[str]) -> str | Pair:
    if isinstance(item, str):
        return item
    if len(item) not in {1, 2}:
        raise ValidationError(f"an input is a text or a pair of texts, got a list of {len(item)}", param="inputs")
    return item[0] if len(item) == 1 else Pair(item[0], item[1])


def refuse(reasons: Mapping[str, object]) -> None:
    """Raises ValidationError for the first field whose reason is a text; its message is the field and the reason."""
    for field, reason in reasons.items():
        if isinstance(reason, str) and reason:
            raise ValidationError(f"`{field}` {reason}", param=field)


def agreed(**given: object) -> Any:  # noqa: ANN401 - the type of the fields
    """Returns the value of fields with one meaning; None if all are None. Raises ValidationError if two differ."""
    found = {name: value for name, value in given.items() if value is not None}
    first = next(iter(found), "")
    for name, value in found.items():
        if value != found[first]:
            raise ValidationError(f"`{first}` and `{name}` contradict each other; give one of them", param=name)
    return found.get(first)


def side_of(truncate: Truncate | None, **named: str | None) -> TruncationSide | None:
    """Returns the end at which a text that is too long loses tokens; None if neither `truncate` nor a field names it.

    Raises ValidationError for a field that is neither left nor right, in any case, and for fields that differ.
    """
    for name, value in named.items():
        if value is not None and value.lower() not in _SIDES:
            raise ValidationError(f"`{name}` must be Left or Right, got {value!r}", param=name)
    sides = {name: None if value is None else _SIDES[value.lower()] for name, value in named.items()}
    side: TruncationSide | None = agreed(truncate=_CUT_SIDES.get(str(truncate)), **sides)
    return side


def _body_error(fault: Exception, schema: type[Any], raw: bytes = b"", *, is_chat: bool = False) -> RequestError:
    """Returns the error for a body that msgspec rejects; `is_chat` says that it has vLLM's `messages`."""
    if is_chat and "missing required field" in str(fault):
        return ValidationError(f"`messages` {NO_CHATS}", param="messages")
    if isinstance(fault, msgspec.ValidationError):
        said = str(fault)
        names = _NAMES.findall(said.rpartition(" - at `$")[2]) or _MISSING.findall(said)
        known = _known(said, schema, names)
        return ValidationError(f"{said}; known are {known}" if known else said, param=names[0] if names else None)
    if isinstance(fault, RecursionError):
        return MalformedBodyError("the body is nested too deeply")
    said = str(fault)
    if said == _TRUNCATED and not raw.strip():
        said = "it is empty"
    elif said == _TRUNCATED and (half := _HALF_PAIR.search(raw)) is not None:
        said = f"{half[0].decode()} is half of a character; the other half has to follow it"
    return MalformedBodyError(f"the body is not JSON in UTF-8: {said}")


def _known(said: str, schema: type[Any], place: Sequence[str]) -> str:
    """Returns what may stand there instead, separated by commas: texts or fields; "" if msgspec refuses a type.

    `said` is msgspec's message; `place` has the names of the fields down to the wrong value.
    """
    is_field = said.startswith("Object contains unknown field")
    if not (is_field or said.startswith("Invalid enum value")):
        return ""
    kinds: list[Any] = [schema]
    for name in place:
        structs = [kind for kind in kinds if isinstance(kind, msgspec.StructMeta)]
        kinds = [kind for struct in structs for kind in _fields(struct).get(name, ())]
    if is_field:
        return ", ".join(name for kind in kinds if isinstance(kind, msgspec.StructMeta) for name in _fields(kind))
    return ", ".join(dict.fromkeys(text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind)))


@cache  # by schema; it takes 0.5 ms to read the fields of a schema
def _fields(schema: type[Any]) -> Mapping[str, Sequence[Any]]:
    """Returns the types that each field of a schema may have, by its name in a body."""
    return {field.encode_name: _parts(field.type) for field in msgspec.structs.fields(schema)}


def _parts(kind: Any) -> list[Any]:  # noqa: ANN401 - a type
    """Returns the types that a value of this type may have, or that its items may have if it is a list."""
    if get_origin(kind) in {None, Literal}:
        return [kind]
    return [part for inner in get_args(kind) for part in _parts(inner)]
