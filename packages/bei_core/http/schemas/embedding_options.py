"""The options of `/v1/embeddings`: OpenAI's, and those of Voyage, Jina, mixedbread, NVIDIA and vLLM.

All these APIs have the same path, so a request may contain options of several. An option that would change the vectors
is never ignored: it is applied or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from bei_core.errors import ValidationError
from bei_core.http.naming import INPUT_TYPES
from bei_core.http.schemas.common import Common, agreed, refuse
from bei_core.http.schemas.vectors import Precision, as_base64, as_lists, prompt_name
from bei_core.http.schemas.vllm_options import VllmEncoding
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.tasks import EncodeOptions, Rows

Format: TypeAlias = Literal["float", "base64", "float16", "int8", "uint8", "binary", "ubinary"]

_F32 = (None, "float", "base64")  # the formats of f32


class EmbeddingOptions(VllmEncoding, kw_only=True):
    """The options of a request for embeddings; None is the default of each."""

    kinds = (Kind.EMBEDDING,)

    encoding_format: Format | list[Format] | None = None  # float; a list gives an object per vector (mixedbread)
    dimensions: int | None = None  # Infinity's client sends 0 by default: the model's own
    input_type: str | None = None  # chooses one of the model's own prompts
    normalize: bool | None = None  # true
    normalized: bool | None = None  # Jina's and mixedbread's name of `normalize`
    use_activation: bool | None = None  # vLLM's name of `normalize`
    prompt: str | None = None  # mixedbread: a text put before each input
    task: str | None = None  # Jina's name of `input_type`
    output_dimension: int | None = None  # Voyage's name of `dimensions`
    output_dtype: Literal["float", "int8", "uint8", "binary", "ubinary"] | None = None  # Voyage
    embedding_type: Format | None = None  # Jina, NVIDIA
    encoding_type: Format | None = None  # LlamaIndex's name of Jina's `embedding_type`
    embed_dtype: Literal["float32", "float16", "bfloat16"] | None = None  # vLLM: of the numbers in base64
    endianness: Literal["native", "little", "big"] | None = None  # vLLM: of the numbers in base64
    late_chunking: bool | None = None  # Jina: all inputs are read as one text, and each gets the mean of its tokens
    return_multivector: bool | None = None  # Jina
    modality: str | list[str] | None = None  # NVIDIA

    @property
    def is_plain(self) -> bool:
        """Whether the request has only OpenAI's options and those that all routes of BEI have."""
        return _options_of_others(self) == _UNSET and self.encoding_format in _F32

    @property
    def width(self) -> int | None:
        """The requested number of dimensions; None: the model's own. Raises ValidationError if two names differ."""
        asked: int | None = agreed(dimensions=self.dimensions or None, output_dimension=self.output_dimension)
        return asked

    @property
    def has_unit_length(self) -> bool:
        """Whether to normalise the vectors to length 1. Raises ValidationError if two names of it differ."""
        asked = agreed(normalize=self.normalize, normalized=self.normalized, use_activation=self.use_activation)
        return asked is not False

    def all_options(self, model: ServedModel) -> EncodeOptions:
        """Returns the options to tokenize the texts. Raises ValidationError for an option that is not supported."""
        self._refuse_unsupported()
        agreed(input_type=self.input_type, task=self.task)
        if not isinstance(self.encoding_format, list):
            self._precision(self.encoding_format)  # before any work
        if self.prompt is not None and (self.input_type or self.task or self.prompt_name):
            raise ValidationError("`prompt` excludes `prompt_name`, `input_type` and `task`", param="prompt")
        options = self.encode_options(model, prompt_name=self.prompt_of_type(model))
        return options if self.prompt is None else replace(options, prompt=self.prompt)

    def prompt_of_type(self, model: ServedModel) -> str | None:
        """Returns the name of the prompt that `input_type`, `task` or the model's name chooses; None for no prompt.

        Raises ValidationError for an unknown type.
        """
        if self.input_type:
            return prompt_name(self.input_type, model)
        if self.task:
            return prompt_name(self.task, model, "task")
        if isinstance(self.model, str) and self.model.endswith(INPUT_TYPES) and self.model != model.name:
            return prompt_name(self.model.rpartition("-")[2], model)
        return None

    def written(self, rows: Rows) -> Sequence[Any]:
        """Returns the rows in the requested format, or in each of several requested formats."""
        if not isinstance(self.encoding_format, list):
            return self._written_as(rows, self.encoding_format)
        columns = {name: self._written_as(rows, name) for name in self.encoding_format}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _written_as(self, rows: Rows, name: Format | None) -> Sequence[Any]:
        """Returns the rows as lists of numbers or in base64; `name` is one format of `encoding_format`."""
        precision = self._precision(name)
        if "base64" not in (name, self.embedding_type, self.encoding_type):
            return as_lists(rows, precision)
        if precision == "float" and self.embed_dtype in ("float16", "bfloat16"):
            precision = self.embed_dtype
        return as_base64(rows, precision, ">" if self.endianness == "big" else "<")

    def _precision(self, name: Format | None) -> Precision:
        """Returns the type of the numbers; `name` is one format of `encoding_format`.

        Raises ValidationError if two fields name different types.
        """
        given = {
            "encoding_format": name,
            "embedding_type": self.embedding_type,
            "encoding_type": self.encoding_type,
            "output_dtype": self.output_dtype,
        }
        precision: Precision | None
        precision = agreed(**{field: None if value in _F32 else value for field, value in given.items()})
        return precision or "float"

    def _refuse_unsupported(self) -> None:
        """Raises ValidationError for an option that is not supported and would change the vectors."""
        modalities = [self.modality] if isinstance(self.modality, str) else self.modality or ()
        is_list = isinstance(self.encoding_format, list)
        is_mixed = is_list and any((self.embedding_type, self.encoding_type, self.output_dtype))
        refuse(
            {
                "return_multivector": self.return_multivector and "is not supported; /embed_all has vectors of tokens",
                "modality": any(kind != "text" for kind in modalities) and "can only be text",
                "encoding_format": (self.encoding_format == [] and "must have at least one format")
                or (is_mixed and "as a list excludes `embedding_type`, `encoding_type` and `output_dtype`"),
            }
        )


# The options of the other APIs; None is the default of each.
_PLAIN_FIELDS = {*Common.__struct_fields__, "encoding_format", "dimensions", "input_type"}
_OTHER_FIELDS = [name for name in EmbeddingOptions.__struct_fields__ if name not in _PLAIN_FIELDS]
_options_of_others = attrgetter(*_OTHER_FIELDS)
_UNSET = (None,) * len(_OTHER_FIELDS)
