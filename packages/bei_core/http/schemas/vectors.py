"""Vectors as the embedding APIs write them, and the prompts that their input types choose."""

from __future__ import annotations

import base64
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bei_core.bfloat16 import to_bf16
from bei_core.errors import ValidationError
from bei_core.serving.served_model import ServedModel
from bei_core.tasks import Rows

Precision: TypeAlias = Literal["float", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary"]
Array: TypeAlias = npt.NDArray[Any]

# The prompts that sentence-transformers models have for an input type of Cohere, Voyage, NVIDIA or a task of Jina, in
# order of preference.
_QUERY = ("query", "search_query", "retrieval.query")
_DOCUMENT = ("document", "passage", "search_document", "retrieval.passage")
_PROMPTS = dict.fromkeys(_QUERY, _QUERY) | dict.fromkeys(_DOCUMENT, _DOCUMENT)
_OTHER_TASKS = {
    "classification": ("classification", "Classification"),
    "clustering": ("clustering", "Clustering", "separation"),
    "separation": ("separation", "clustering", "Clustering"),
    "text-matching": ("text-matching", "STS"),
}


def quantize(rows: Rows, precision: Precision) -> Array:
    """Converts rows f32[N, D] to a type with fewer bits.

    - float16, bfloat16 (as u16): rounded.
    - int8: i8[N, D], each row times 127 over its largest absolute value, rounded. Rows keep their directions: compare
      them by cosine similarity. The scales of hosted models belong to these models and are not published.
    - uint8: u8[N, D], the int8 values plus 128.
    - ubinary: u8[N, D / 8], one bit a number: 1 above zero, the first number in the highest bit, as `numpy.packbits`
      and sentence-transformers' `quantize_embeddings` do. Zeros fill the last byte.
    - binary: i8[N, D / 8], the ubinary values less 128 (offset binary: docs.voyageai.com, "Flexible dimensions and
      quantization"; docs.cohere.com, "Embed").
    """
    if precision == "float":
        return rows
    if precision == "float16":
        return rows.astype(np.float16)
    if precision == "bfloat16":
        return to_bf16(rows)
    if precision in {"int8", "uint8"}:
        largest = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)  # 127 / the smallest f32 overflows f32
        scaled = np.rint(rows * (127 / np.where(largest > 0, largest, 1)))
        return scaled.astype(np.int8) if precision == "int8" else (scaled + 128).astype(np.uint8)
    packed = np.packbits(rows > 0, axis=1)
    return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)


def as_lists(rows: Rows, precision: Precision) -> list[Array]:
    """Returns one array of numbers per row, in the requested precision."""
    array = quantize(rows, precision)
    return list(np.ascontiguousarray(array.astype(np.float32) if array.dtype == np.float16 else array))


def as_base64(rows: Rows, precision: Precision = "float", order: Literal["<", ">"] = "<") -> list[str]:
    """Returns the bytes of each row in base64; `order` is the byte order of each number."""
    array = quantize(rows, precision)
    return [
        base64.b64encode(row.tobytes()).decode("ascii") for row in array.astype(array.dtype.newbyteorder(order), "C")
    ]


def prompt_name(input_type: str, model: ServedModel, field: str = "input_type") -> str | None:
    """Returns the name of the model's prompt for an input type; None if the model has no such prompt.

    `field` is the body's field with the input type. Raises ValidationError if the type is neither a usual one nor a
    prompt of the model.
    """
    usual = _PROMPTS | _OTHER_TASKS
    for name in (input_type, *usual.get(input_type, ())):
        if name in model.prompts:
            return name
    if input_type in _PROMPTS or (input_type in _OTHER_TASKS and not model.prompts):
        return None
    known = sorted({"query", "passage", "document", *model.prompts})
    raise ValidationError(f"unknown `{field}` {input_type!r}; known are {', '.join(known)}", param=field)
