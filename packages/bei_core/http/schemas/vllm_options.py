"""The options of vLLM's routes, which `/v1/embeddings` and `/rerank` share, with the names that Voyage has for them."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from bei_core.http.schemas.common import NO_CHATS, Common, agreed, refuse, side_of
from bei_core.serving.served_model import ServedModel
from bei_core.tasks import EncodeOptions


class VllmEncoding(Common, kw_only=True):
    """A body with the options to tokenize texts."""

    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None  # -1: as many as the model takes
    truncation_side: Literal["left", "right"] | None = None  # vLLM's name of `truncation_direction`
    truncation: bool | None = None  # Voyage's name of `truncate`
    padding: Literal["max_length", "do_not_pad"] | None = None
    messages: Any = None

    def encode_options(
        self, model: ServedModel, *, prompt_name: str | None = None, spans: bool = False
    ) -> EncodeOptions:
        """Returns the options to tokenize the texts.

        Raises ValidationError for an option that is not supported, and for two names of one option that differ.
        """
        if _encoding(self) == _NO_ENCODING:
            return super().encode_options(model, prompt_name=prompt_name, spans=spans)
        limit = self.truncate_prompt_tokens
        refuse(
            {
                "messages": self.messages is not None and NO_CHATS,
                "padding": self.padding == "max_length" and "can only be do_not_pad",
                "truncate_prompt_tokens": limit == 0 and "must be -1 or at least 1",
            }
        )
        options = super().encode_options(model, prompt_name=prompt_name, spans=spans)
        side = side_of(
            self.truncate, truncation_direction=self.truncation_direction, truncation_side=self.truncation_side
        )
        is_limited = None if limit is None else True
        asked = agreed(truncate=self.truncates, truncation=self.truncation, truncate_prompt_tokens=is_limited)
        truncate = options.truncate if asked is None else asked
        return replace(options, truncate=truncate, side=side, max_tokens=None if limit == -1 else limit)


class VllmOptions(VllmEncoding, kw_only=True):
    """A body with the options of vLLM's own routes that change a result."""

    use_activation: bool | None = None  # False: logits instead of probabilities, vectors that are not normalised
    activation: bool | None = None  # older names of it
    softmax: bool | None = None
    chat_template: str | None = None
    max_tokens_per_query: int | None = None

    @property
    def is_vllm(self) -> bool:
        """Whether the body has a field that only vLLM's clients send."""
        return any(getattr(self, name) is not None for name in _OPTIONS)

    @property
    def activates(self) -> bool:
        """Whether to apply the model's activation. Raises ValidationError if two of its names differ."""
        names = {"use_activation": self.use_activation, "activation": self.activation, "softmax": self.softmax}
        return agreed(**names) is not False

    def encode_options(
        self, model: ServedModel, *, prompt_name: str | None = None, spans: bool = False
    ) -> EncodeOptions:
        """Returns the options to tokenize the texts. Raises ValidationError as `VllmEncoding` does."""
        if _vllm(self) == _NO_VLLM:
            return Common.encode_options(self, model, prompt_name=prompt_name, spans=spans)
        template = self.chat_template is not None
        refuse(
            {
                "chat_template": template and "is not supported; the server's rerank_template is used",
                "max_tokens_per_query": self.max_tokens_per_query and "is not supported",
            }
        )
        return super().encode_options(model, prompt_name=prompt_name, spans=spans)


_OPTIONS = (
    "truncate_prompt_tokens",
    "truncation_side",
    "use_activation",
    "activation",
    "softmax",
    "add_special_tokens",
)

# Of these, most requests have none.
_ENCODING = [name for name in VllmEncoding.__struct_fields__ if name not in Common.__struct_fields__]
_encoding, _NO_ENCODING = attrgetter(*_ENCODING), (None,) * len(_ENCODING)
_VLLM = [*_ENCODING, "chat_template", "max_tokens_per_query"]
_vllm, _NO_VLLM = attrgetter(*_VLLM), (None,) * len(_VLLM)
