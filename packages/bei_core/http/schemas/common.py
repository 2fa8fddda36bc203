"""Parts that the APIs share: decoding of bodies, options for tokenization, inputs, and parts of replies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from bei_core.errors import EmptyInputError, MalformedBodyError, RequestError, ValidationError
from bei_core.http.json_schema import INTEGER, NUMBER, STRING, array_of, object_of
from bei_core.metrics import Timings
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Classify, EncodeOptions, Pair, Rows, Scoring, Task, Text, TruncationSide, best_first

ValueT = TypeVar("ValueT")

# A text, token ids, or a list of either. msgspec allows one array type per union, so `inputs_of` refuses mixtures.
Input: TypeAlias = str | list[str | int | list[int]]
Truncate: TypeAlias = bool | Literal["NONE", "START", "END"]  # the strings are those of Cohere and NIM

LABELS = array_of(object_of(label=STRING, score=NUMBER))  # of `labelled`
USAGE = object_of(prompt_tokens=INTEGER, total_tokens=INTEGER)  # of `usage`

# Why a body of vLLM's with `messages` is refused.
NO_CHATS = "is not supported: apply the chat template in the client, and send the text with `add_special_tokens: false`"

_MESSAGES = re.compile(rb'"messages"\s*:')
_FIELDS = (re.compile(r"\$\.(\w+)"), re.compile(r"field `(\w+)`"))
_TRUNCATED = "Input data was truncated"  # msgspec's text, also for the first half of a surrogate pair at a text's end
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # ValidationError is a DecodeError
_SIDES = {"right": TruncationSide.RIGHT, "left": TruncationSide.LEFT}


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The data that a reply may contain besides the model's result."""

    model: ServedModel
    request_id: str
    is_by_fields: bool = False  # the client sends all bodies to one path, as Hugging Face's clients do


class Body(Protocol):
    """A body that the model answers: the schema of a route whose `answer` is None."""

    kinds: ClassVar[tuple[Kind, ...]]

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

    def encode_options(
        self, model: ServedModel, *, prompt_name: str | None = None, spans: bool = False
    ) -> EncodeOptions:
        """Returns the options to tokenize the texts. Raises ValidationError for an unknown prompt or side."""
        side = None if self.truncation_direction is None else _SIDES.get(self.truncation_direction.lower())
        if side is None and self.truncation_direction is not None:
            raise ValidationError(
                f"`truncation_direction` must be Left or Right, got {self.truncation_direction!r}",
                param="truncation_direction",
            )
        default, truncate, name = model.default_options, self.truncate, prompt_name or self.prompt_name
        if truncate is None:
            truncate = default.truncate
        elif isinstance(truncate, str):
            side = TruncationSide.LEFT if truncate == "START" else TruncationSide.RIGHT
            truncate = truncate != "NONE"
        prompt = default.prompt if name is None else model.prompt(name)
        return EncodeOptions(
            truncate,
            side,
            prompt,
            default.pool_prompt,
            self.chunk,
            self.max_tokens_per_doc,
            spans,
            add_special_tokens=self.add_special_tokens is not False,
        )


def decode(raw: bytes, schema: type[ValueT]) -> ValueT:
    """Decodes a JSON body into `schema`.

    Raises MalformedBodyError if it is not JSON, ValidationError naming a field of the wrong type.
    """
    try:
        return msgspec.json.decode(raw, type=schema)
    except _FAULTS as fault:
        raise _body_error(fault, raw, is_chat=_MESSAGES.search(raw) is not None) from fault


def convert(value: object, schema: type[ValueT]) -> ValueT:
    """Converts a decoded body to `schema`; raises the same errors as `decode`."""
    try:
        return msgspec.convert(value, schema)
    except _FAULTS as fault:
        raise _body_error(fault) from fault


def inputs_of(value: Input, field: str) -> list[Text]:
    """Returns the inputs of a body. A list of numbers is one input: the token ids of one text."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise EmptyInputError(f"`{field}` cannot be empty", param=field)
    numbers = sum(isinstance(item, int) for item in value)
    if numbers == 0:
        return value  # type: ignore[return-value]
    if numbers < len(value):
        raise ValidationError(f"`{field}` mixes token ids with texts; put the ids of each text in a list", param=field)
    return [value]  # type: ignore[list-item]


def texts_of(value: str | Sequence[str]) -> list[str]:
    """Returns one or several texts as a list. Raises EmptyInputError if there are none."""
    texts = [value] if isinstance(value, str) else list(value)
    if not texts:
        raise EmptyInputError("`inputs` cannot be empty", param="inputs")
    return texts


def classify(items: Sequence[str | list[str]], options: EncodeOptions, scoring: Scoring) -> Classify:
    """Returns the task to score texts and pairs; a pair is a list of two texts.

    Raises EmptyInputError if there are none, ValidationError for a list of another length.
    """
    if not items:
        raise EmptyInputError("`inputs` cannot be empty", param="inputs")
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
            raise ValidationError(f"`{first}` and `{name}` mean the same and differ; give one of them", param=name)
    return found.get(first)


def _body_error(fault: Exception, raw: bytes = b"", *, is_chat: bool = False) -> RequestError:
    """Returns the error for a body that msgspec rejects; `is_chat` says that it has vLLM's `messages`."""
    if is_chat and "missing required field" in str(fault):
        return ValidationError(f"`messages` {NO_CHATS}", param="messages")
    if isinstance(fault, msgspec.ValidationError):
        field = next((found for pattern in _FIELDS if (found := pattern.search(str(fault)))), None)
        return ValidationError(str(fault), param=field.group(1) if field else None)
    if isinstance(fault, RecursionError):
        return MalformedBodyError("the body is nested too deeply")
    said = str(fault)
    if said == _TRUNCATED and not raw.strip():
        said = "it is empty"
    elif said == _TRUNCATED and (half := _HALF_PAIR.search(raw)) is not None:
        said = f"{half[0].decode()} is half of a character; the other half has to follow it"
    return MalformedBodyError(f"the body is not JSON in UTF-8: {said}")
