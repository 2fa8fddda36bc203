"""The API of text-embeddings-inference for tokens: `/tokenize` and `/decode`, which need no model."""

from __future__ import annotations

from typing import Any

from bei_core.errors import ValidationError
from bei_core.http.json_schema import BOOLEAN, INTEGER, STRING, array_of, nullable, object_of
from bei_core.http.limits import BYTES_PER_SPAN, MAX_LISTED_CHARS, MAX_LISTED_TEXT_CHARS
from bei_core.http.replies import Deferred
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import Named, texts_of
from bei_core.text.tokenizer import INLINE_CHARS


class TokenizeRequest(Named, kw_only=True):
    """`POST /tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(Named, kw_only=True):
    """`POST /decode`."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True

    def lists(self) -> list[list[int]]:
        """Returns one list of token ids per text. Raises ValidationError if ids and lists are mixed."""
        numbers = [item for item in self.ids if isinstance(item, int)]
        if numbers and len(numbers) < len(self.ids):
            raise ValidationError("`ids` must be token ids, or lists of token ids", param="ids")
        return [numbers] if numbers else [item for item in self.ids if not isinstance(item, int)]


async def tokenize(call: Call) -> Deferred | list[Any]:
    """Answers `POST /tokenize`: `[[{id, text, special, start, stop}]]`."""
    body: TokenizeRequest = call.body
    prompt = call.service.model.prompt(body.prompt_name) if body.prompt_name else ""
    texts = texts_of(body.inputs)
    call.service.model.check_num_inputs(len(texts))
    tokenizer, special = call.service.tokenizer, body.add_special_tokens
    size = sum(map(len, texts)) + len(prompt) * len(texts)
    _check_num_characters(max(map(len, texts)) + len(prompt), size)

    def make() -> list[Any]:
        names = ("id", "text", "special", "start", "stop")
        found = (tokenizer.spans(prompt + text, add_special_tokens=special) for text in texts)
        return [[dict(zip(names, span, strict=True)) for span in spans] for spans in found]

    return make() if size <= INLINE_CHARS else Deferred(BYTES_PER_SPAN * size, make)


async def decode(call: Call) -> Deferred | list[str]:
    """Answers `POST /decode`: the text of each list of token ids."""
    body: DecodeRequest = call.body
    tokenizer, skip = call.service.tokenizer, body.skip_special_tokens

    def make() -> list[str]:
        lists = body.lists()
        call.service.model.check_num_inputs(len(lists))
        return [tokenizer.decode(ids, skip_special_tokens=skip) for ids in lists]

    return Deferred(0, make) if call.is_large else make()


def _check_num_characters(longest: int, total: int) -> None:
    """Raises ValidationError if one text or all texts together have too many characters to list their tokens."""
    if longest > MAX_LISTED_TEXT_CHARS or total > MAX_LISTED_CHARS:
        raise ValidationError(
            f"`inputs` has {total} characters, {longest} in the longest text; tokens are listed of at most "
            f"{MAX_LISTED_CHARS} characters, {MAX_LISTED_TEXT_CHARS} in one text",
            param="inputs",
        )


_SPAN = object_of(id=INTEGER, text=STRING, special=BOOLEAN, start=nullable(INTEGER), stop=nullable(INTEGER))

ROUTES = (
    Route(
        "POST",
        "/tokenize",
        "tokens of texts",
        TokenizeRequest,
        tokenize,
        array_of(array_of(_SPAN)),
        example={"inputs": ["a tree grows"]},
    ),
    Route(
        "POST",
        "/decode",
        "texts of token ids",
        DecodeRequest,
        decode,
        array_of(STRING),
        inputs="ids",
        example={"ids": [[2, 3]]},
    ),
)
