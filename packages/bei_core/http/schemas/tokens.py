"""`/tokenize` and `/decode` of text-embeddings-inference, `/tokenize` and `/detokenize` of vLLM. They need no model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from bei_core.errors import ValidationError
from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import BOOLEAN, INTEGER, STRING, any_of, array_of, nullable, object_of
from bei_core.http.limits import BYTES_PER_SPAN, MAX_DECODED_IDS, MAX_LISTED_CHARS, MAX_LISTED_TEXT_CHARS
from bei_core.http.replies import Deferred
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import NO_CHATS, Named, refuse, texts_of
from bei_core.text.tokenizer import INLINE_CHARS, TextTokenizer


class TokenizeRequest(Named, kw_only=True):
    """`POST /tokenize`: the reply is vLLM's if the body has `prompt`."""

    inputs: str | list[str] | None = None
    prompt: str | None = None  # vLLM's
    add_special_tokens: bool = True
    prompt_name: str | None = None
    return_token_strs: bool | None = None  # vLLM's
    messages: Any = None  # vLLM's

    @property
    def texts(self) -> list[str]:
        """The texts. Raises ValidationError unless exactly one of the fields is set, EmptyInputError for no texts."""
        refuse({"messages": self.messages is not None and NO_CHATS})
        if (self.inputs is None) == (self.prompt is None):
            raise ValidationError("give either `inputs` or `prompt`", param="inputs")
        return [self.prompt] if self.prompt is not None else texts_of(self.inputs or [])


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


class DetokenizeRequest(Named, kw_only=True):
    """`POST /detokenize`."""

    tokens: list[int]


async def tokenize(call: Call) -> Deferred | list[Any] | dict[str, Any]:
    """Answers `POST /tokenize`: `[[{id, text, special, start, stop}]]`, or vLLM's object."""
    body: TokenizeRequest = call.body
    prompt = call.service.model.prompt(body.prompt_name) if body.prompt_name else ""
    texts = body.texts
    call.service.model.check_num_inputs(len(texts))
    tokenizer, special = call.service.tokenizer, body.add_special_tokens
    size = sum(map(len, texts)) + len(prompt) * len(texts)
    _check_num_characters(max(map(len, texts)) + len(prompt), size)

    def rows(text: str) -> Iterator[dict[str, Any]]:
        names = ("id", "text", "special", "start", "stop")
        for span in tokenizer.spans(prompt + text, add_special_tokens=special):
            yield dict(zip(names, span, strict=True))

    if body.prompt is not None:
        vllm = partial(_of_vllm, tokenizer, prompt + body.prompt, special, with_names=bool(body.return_token_strs))
        return vllm() if size <= INLINE_CHARS else Deferred(BYTES_PER_SPAN * size, vllm)
    if size <= INLINE_CHARS:
        return [list(rows(text)) for text in texts]
    return Deferred(BYTES_PER_SPAN * size, lambda: [rows(text) for text in texts])


async def decode(call: Call) -> Deferred | list[str]:
    """Answers `POST /decode`: the text of each list of token ids."""
    body: DecodeRequest = call.body
    tokenizer, skip = call.service.tokenizer, body.skip_special_tokens

    def make() -> list[str]:
        lists = body.lists()
        call.service.model.check_num_inputs(len(lists))
        _check_num_ids(max(map(len, lists), default=0), "ids")
        return [tokenizer.decode(ids, skip_special_tokens=skip) for ids in lists]

    return Deferred(0, make) if call.is_large else make()


async def detokenize(call: Call) -> Deferred | dict[str, str]:
    """Answers `POST /detokenize`: the text of token ids, with the special tokens."""
    body: DetokenizeRequest = call.body

    def make() -> dict[str, str]:
        _check_num_ids(len(body.tokens), "tokens")
        return {"prompt": call.service.tokenizer.decode(body.tokens, skip_special_tokens=False)}

    return Deferred(0, make) if call.is_large else make()


def _of_vllm(tokenizer: TextTokenizer, text: str, special: bool, *, with_names: bool) -> dict[str, Any]:
    """Returns vLLM's reply of `/tokenize`."""
    ids = [span[0] for span in tokenizer.spans(text, add_special_tokens=special)]
    names = tokenizer.names(ids) if with_names else None
    return {"count": len(ids), "max_model_len": tokenizer.max_seq_len, "tokens": ids, "token_strs": names}


def _check_num_characters(longest: int, total: int) -> None:
    """Raises ValidationError if one text or all texts together have too many characters to list their tokens."""
    if longest > MAX_LISTED_TEXT_CHARS or total > MAX_LISTED_CHARS:
        raise ValidationError(
            f"`inputs` has {total} characters, {longest} in the longest text; tokens are listed of at most "
            f"{MAX_LISTED_CHARS} characters, {MAX_LISTED_TEXT_CHARS} in one text",
            param="inputs",
        )


def _check_num_ids(longest: int, field: str) -> None:
    """Raises ValidationError if one text has too many token ids to decode."""
    if longest > MAX_DECODED_IDS:
        raise ValidationError(
            f"`{field}` has {longest} token ids of one text; at most {MAX_DECODED_IDS} are decoded, so split them",
            param=field,
        )


_SPAN = object_of(id=INTEGER, text=STRING, special=BOOLEAN, start=nullable(INTEGER), stop=nullable(INTEGER))
_VLLM = object_of(count=INTEGER, max_model_len=INTEGER, tokens=array_of(INTEGER), token_strs=nullable(array_of(STRING)))
_TOKENS = any_of(array_of(array_of(_SPAN)), _VLLM)

ROUTES = (
    Route(
        "POST",
        "/tokenize",
        "tokens of texts; with `prompt`, vLLM's reply",
        TokenizeRequest,
        tokenize,
        _TOKENS,
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
    Route(
        "POST",
        "/detokenize",
        "vLLM: the text of token ids, with special tokens",
        DetokenizeRequest,
        detokenize,
        object_of(prompt=STRING),
        errors=OPENAI,
        inputs="tokens",
        example={"tokens": [2, 3]},
    ),
)
