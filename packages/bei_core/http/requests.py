"""Request bodies: their fields, and the task each one means. Unknown fields are ignored, wrong types are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec

from bei_core.errors import EmptyInputError, MalformedBodyError, ValidationError
from bei_core.serving.service import Service
from bei_core.tasks import Embed, Encoding, Text, TruncationSide, check_dimensions

BodyT = TypeVar("BodyT", bound=msgspec.Struct)

# A text, token ids, or a list of either; msgspec knows one array type a union, so a mixture is refused here.
Input: TypeAlias = str | list[str | int | list[int]]
Truncate: TypeAlias = bool | Literal["NONE", "START", "END"]  # the strings are Cohere's and NIM's

_FIELD = re.compile(r"\$\.(\w+)")


class Common(msgspec.Struct, kw_only=True):
    """What every route that encodes texts takes."""

    truncate: Truncate | None = None
    truncation_direction: str | None = None  # as the model was published
    prompt_name: str | None = None
    chunk: bool = False
    max_tokens_per_doc: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def encoding(self, service: Service, prompt_name: str | None = None) -> Encoding:
        """How this request's texts are encoded."""
        try:
            named = self.truncation_direction
            side = None if named is None else TruncationSide(named.lower())
        except ValueError:
            raise ValidationError(
                f"`truncation_direction` must be Left or Right, got {self.truncation_direction!r}",
                param="truncation_direction",
            ) from None
        truncate = self.truncate
        if isinstance(truncate, str):
            side = TruncationSide.LEFT if truncate == "START" else TruncationSide.RIGHT
            truncate = truncate != "NONE"
        return service.encoding(
            truncate=truncate,
            side=side,
            prompt_name=prompt_name or self.prompt_name,
            chunk=self.chunk,
            chunk_tokens=self.max_tokens_per_doc,
        )


class EmbedRequest(Common):
    """`POST /embed`, text-embeddings-inference's."""

    inputs: Input
    normalize: bool = True
    dimensions: int | None = None

    def task(self, service: Service) -> Embed:
        """The task; raises a RequestError for inputs that cannot be."""
        return _embed(
            service, inputs_of(self.inputs, "inputs"), self.encoding(service), self.dimensions, self.normalize
        )


class EmbeddingsRequest(Common):
    """`POST /v1/embeddings`, OpenAI's, with the model's own prompts by `input_type`."""

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None  # null, as some clients send it: float
    dimensions: int | None = None  # 0, as Infinity's client sends unless told otherwise: the model's own
    user: str | None = None
    input_type: str | None = None

    def task(self, service: Service) -> Embed:
        """The task; raises a RequestError for inputs that cannot be."""
        prompt_name = _prompt_of(self.input_type, service) if self.input_type else None
        return _embed(
            service, inputs_of(self.input, "input"), self.encoding(service, prompt_name), self.dimensions or None, True
        )


class Sentences(msgspec.Struct):
    """One sentence and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(msgspec.Struct, kw_only=True):
    """`POST /similarity`; what else `parameters` may hold is how to encode."""

    inputs: Sentences
    parameters: Common | None = None

    def task(self, service: Service) -> Embed:
        """The task; raises a RequestError for inputs that cannot be."""
        if not self.inputs.sentences:
            raise EmptyInputError("`inputs.sentences` cannot be empty", param="inputs")
        texts: list[Text] = [self.inputs.source_sentence, *self.inputs.sentences]
        return _embed(service, texts, (self.parameters or Common()).encoding(service), None, True)


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """`POST /tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(msgspec.Struct, kw_only=True):
    """`POST /decode`."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True

    def lists(self) -> list[list[int]]:
        """One list of ids a text. Raises ValidationError where ids and lists are mixed."""
        numbers = [item for item in self.ids if isinstance(item, int)]
        if numbers and len(numbers) < len(self.ids):
            raise ValidationError("`ids` must be token ids, or lists of token ids", param="ids")
        return [numbers] if numbers else [item for item in self.ids if not isinstance(item, int)]


def decode(body: bytes, kind: type[BodyT]) -> BodyT:
    """The body as `kind`.

    Raises MalformedBodyError for what is not JSON, ValidationError naming a field of the wrong type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as fault:
        field = _FIELD.search(str(fault)) or re.search(r"field `(\w+)`", str(fault))
        raise ValidationError(str(fault), param=field.group(1) if field else None) from fault
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise MalformedBodyError(f"the body is not JSON in UTF-8: {fault}") from fault
    except RecursionError as fault:
        raise MalformedBodyError("the body is nested too deeply") from fault


def texts_of(value: str | Sequence[str]) -> list[str]:
    """One text or several, as several. Raises EmptyInputError for none."""
    texts = [value] if isinstance(value, str) else list(value)
    if not texts:
        raise EmptyInputError("`inputs` cannot be empty", param="inputs")
    return texts


def _embed(service: Service, texts: list[Text], encoding: Encoding, dimensions: int | None, normalize: bool) -> Embed:
    service.expect("embedding")
    if dimensions is not None:
        check_dimensions(dimensions, service.engine.row_width)  # before any work
    return Embed(texts, encoding, normalize, dimensions)


def inputs_of(value: Input, field: str) -> list[Text]:
    """The inputs of a body: a bare list of numbers is one input, the ids of one text."""
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


def _prompt_of(input_type: str, service: Service) -> str | None:
    """The name of the model's prompt for an input type; None where the model has none for it."""
    names = {"query": ("query", "search_query"), "search_query": ("query", "search_query")}
    documents = ("document", "passage", "search_document")
    for name in names.get(input_type, documents if input_type in documents else (input_type,)):
        if name in service.spec.prompts:
            return name
    if input_type in {"query", "search_query", *documents}:
        return None  # the model was trained without
    known = sorted({"query", "passage", "document", *service.spec.prompts})
    raise ValidationError(f"unknown `input_type` {input_type!r}; known are {', '.join(known)}", param="input_type")
