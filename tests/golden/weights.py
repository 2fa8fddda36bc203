"""Random weights for the tiny checkpoints, and the safetensors files that hold them.

The values come from PCG64's raw 64-bit integers by integer arithmetic and by operations that IEEE 754 rounds exactly,
so they are the same on every machine and with every version of NumPy. (By NEP 19, NumPy keeps PCG64's integers stable,
but not what `Generator.standard_normal` makes of them; logarithms and cosines differ among processors.)

A model initialised as usual answers every text with nearly the same vector and attends to every token alike, so half of
the possible mistakes in an engine would not show. With the scales below, words differ more than positions do, attention
logits spread by more than one, and every bias and LayerNorm weight is random too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Shape: TypeAlias = tuple[int, ...]
Values: TypeAlias = npt.NDArray[np.float64]
# Rows of: pattern of a tensor's name; mean; deviation; whether the deviation is divided by the root of the fan-in (a
# deviation of 1 then keeps the variance of the input). The first pattern that is found in the name decides.
Scales: TypeAlias = tuple[tuple[str, float, float, bool], ...]

FEED_FORWARD_OUT = r"(?<!attention\.)output\.dense\.weight$|lin2\.weight$"
BERT: Scales = (
    (r"layer_?norm\.(weight|gamma)$", 1.0, 0.25, False),
    (r"layer_?norm\.(bias|beta)$", 0.0, 0.1, False),
    (r"\.bias$", 0.0, 0.15, False),
    (r"word_embeddings", 0.0, 1.5, False),
    (r"(position|token_type)_embeddings", 0.0, 0.4, False),
    (r"relative_attention_bias", 0.0, 0.8, False),
    (FEED_FORWARD_OUT, 0.0, 1.8, True),
    (r"(^|\.)(classifier|out_proj)\.weight$", 0.0, 2.0, True),  # logits far enough apart to tell inputs from each other
    (r"", 0.0, 1.15, True),
)
ENCODER: Scales = (
    (r"(norm\d?|_ln)\.weight$", 1.0, 0.25, False),
    (r"(norm\d?|_ln)\.bias$", 0.0, 0.1, False),
    # The bias of a masked language model is as low as in a SPLADE model, so that few words have a weight above zero.
    (r"^(cls\.predictions|lm_head|vocab_projector)\.bias$", -12.0, 3.0, False),
    (r"bias$", 0.0, 0.2, False),
    (r"word_embeddings|tok_embeddings", 0.0, 1.5, False),
    (r"(position|token_type)_embeddings", 0.0, 0.5, False),
    (r"rel_embeddings", 0.0, 1.0, False),
    (r"conv\.conv\.weight$", 0.0, 0.12, False),
    (r"(query|key|query_proj|key_proj|q_lin|k_lin|qkv_proj)\.weight$", 0.0, 1.5, True),
    (r"(Wqkv|mlp\.Wo)\.weight$", 0.0, 1.1, True),  # these layers follow a norm, so their errors add up
    (r"(fc2|down_proj|lin2)\.weight$|(?<!attention\.)output\.dense\.weight$", 0.0, 2.0, True),
    (r"^(classifier|classifier\.out_proj|linear)\.weight$", 0.0, 0.9, True),
    (r"", 0.0, 1.2, True),
)
# ELECTRA and ModernBERT have other names for the bias of a masked language model.
MASKED_LM: Scales = ((r"^(generator_lm_head|decoder)\.bias$", -12.0, 3.0, False), *ENCODER)
# The matrices spread attention logits by more than one, so that a wrong mask or position changes every vector.
DECODER_MATRICES: Scales = (
    (r"(bias)$", 0.0, 0.4, False),
    (r"(q_proj|k_proj)\.weight$", 0.0, 1.6, True),
    (r"o_proj\.weight$", 0.0, 1.8, True),
    (r"down_proj\.weight$", 0.0, 2.0, True),
    (r"score\.weight$", 0.0, 2.0, True),
    (r"lm_head\.weight$", 0.0, 1.5, True),
)
DECODER: Scales = (
    (r"norm\.weight$", 1.0, 0.25, False),
    *DECODER_MATRICES,
    (r"embed_tokens", 0.0, 1.0, False),
    (r"", 0.0, 1.2, True),
)
# Gemma's RMSNorm scales by 1 + weight, and its embeddings are multiplied by the root of the hidden size.
GEMMA: Scales = (
    (r"norm\.weight$", 0.1, 0.3, False),
    *DECODER_MATRICES,
    (r"embed_tokens", 0.0, 1.0, True),
    (r"", 0.0, 1.2, True),
)
# bge-multilingual-gemma2 divides attention logits by the root of the published head size, 256, whatever the size of the
# small copy: its queries and keys have to be larger for the soft cap to matter.
GEMMA_BY_256: Scales = ((r"(q_proj|k_proj)\.weight$", 0.0, 3.5, True), *GEMMA)
# Models that are published with code of their own have more norms, and experts that a router has to tell apart.
PUBLISHED: Scales = (
    (r"layer_?norm_[qk12]\.weight$", 1.0, 0.25, False),
    (r"router\.layer\.weight$", 0.0, 2.0, True),
    (r"(mlp\.wo|down_layer)\.weight$", 0.0, 2.0, True),
    # Larger ones would move every token of every text in the same direction.
    (r"(fc[12]|experts|Wqkv|out_proj)\.bias$", 0.0, 0.07, False),
    *ENCODER,
)
# T5 does not divide attention scores by the root of the head size: its queries and keys are small.
T5: Scales = (
    (r"relative_attention_bias", 0.0, 1.0, False),
    (r"SelfAttention\.[qk]\.weight$", 0.0, 0.7, True),
    (r"(shared|embed_tokens)\.weight$", 0.0, 1.5, False),
    (r"DenseReluDense\.wo\.weight$|SelfAttention\.o\.weight$", 0.0, 2.0, True),
    *ENCODER,
)
SCALES: dict[str, Scales] = {
    "bert": BERT,
    "encoder": ENCODER,
    "masked_lm": MASKED_LM,
    "decoder": DECODER,
    "gemma": GEMMA,
    "gemma_by_256": GEMMA_BY_256,
    "published": PUBLISHED,
    "t5": T5,
}

LANES = 12  # 16-bit integers that are added up for one value: their sum is close to normal, up to about 4 deviations
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def draw(seed: str, name: str, shape: Shape, scales: Scales) -> Values:
    """f64 `shape`: the values of the tensor `name`, which depend on the arguments alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    sums = _sums(key, math.prod(shape)).reshape(shape)
    if re.search(FEED_FORWARD_OUT, name) and scales is BERT:
        # Activations are positive on average. Rows with a mean of zero keep that average from moving every token of
        # every text in the same direction.
        sums = sums * shape[-1] - sums.sum(axis=1, keepdims=True)
        unit: Values = sums / (shape[-1] * 65536.0)
    else:
        unit = (sums - LANES * 65535 // 2) / 65536.0
    _, mean, deviation, by_fan_in = next(row for row in scales if re.search(row[0], name, re.IGNORECASE))
    return mean + (deviation / math.sqrt(shape[-1]) if by_fan_in else deviation) * unit


def _sums(key: int, count: int) -> npt.NDArray[np.int64]:
    """i64[count]: sums of 12 random 16-bit integers each, with a deviation of 65536."""
    words = np.random.PCG64(key).random_raw(count * LANES // 4).astype("<u8")
    sums: npt.NDArray[np.int64] = words.view("<u2").reshape(LANES, count).sum(axis=0, dtype=np.int64)
    return sums


def encode(values: npt.NDArray[Any], dtype: str) -> bytes:
    """The values in a dtype of safetensors, rounded to the nearest (to even where two are as near), little-endian."""
    if dtype == "I64":
        return values.astype("<i8").tobytes()
    single = values.astype("<f4")
    if dtype == "F32":
        return single.tobytes()
    if dtype == "F16":
        return single.astype("<f2").tobytes()
    bits = single.view("<u4")
    rounded: npt.NDArray[np.uint32] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def safetensors(tensors: Mapping[str, tuple[str, Shape, bytes]]) -> bytes:
    """A safetensors file of name -> (dtype, shape, content). It does not depend on a version of the library."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + len(content)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(content for _, _, content in tensors.values())
