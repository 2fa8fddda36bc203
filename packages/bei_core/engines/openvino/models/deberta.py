"""DeBERTa v2 and v3: attention to content and to relative position apart (He et al. 2021).

Written after transformers 5.23's `models/deberta_v2/modeling_deberta_v2.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, even_heads
from bei_core.engines.openvino.models.weights import Weights
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import Config, setting


@dataclass(frozen=True)
class _Positions:
    """What every layer's relative attention starts from."""

    embeddings: Node  # f32[1, 2S, H]
    to_key: Node  # i64[L, L], row of `embeddings` for a query (first axis) that looks at a key's position
    to_query: Node  # i64[L, L], row for a key (first axis) that looks at a query's position


class DebertaV2:
    """One checkpoint; `graph` makes its nodes."""

    PREFIXES, ANCHOR = ("", "deberta."), "embeddings.word_embeddings.weight"

    def __init__(self, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = int(setting(config, "hidden_size"))
        self._heads = even_heads(self._hidden, int(setting(config, "num_attention_heads")))
        self._inner = int(setting(config, "intermediate_size"))
        self._eps = float(config.get("layer_norm_eps", 1e-7))
        self._activation = ops.activation(str(config.get("hidden_act", "gelu")))
        if not config.get("relative_attention"):
            raise UnsupportedModelError("config.json: relative_attention false is not supported")
        kinds = config.get("pos_att_type") or []
        self._kinds = [kind.strip() for kind in (kinds.lower().split("|") if isinstance(kinds, str) else kinds)]
        self._scale = 1 / math.sqrt(self._heads.size * (1 + len({"c2p", "p2c"}.intersection(self._kinds))))

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        first = hidden = self._embed(inputs)
        mask, positions = inputs.mask(), self._positions(inputs)
        for layer in range(int(setting(self._config, "num_hidden_layers"))):
            hidden = self._layer(hidden, mask, positions, f"encoder.layer.{layer}.")
            if layer == 0 and int(self._config.get("conv_kernel_size") or 0):
                hidden = self._convolve(first, hidden, inputs)
        return hidden

    def _embed(self, inputs: Inputs) -> Node:
        get, config = self._layers.weights.get, self._config
        total = ops.embedding(get(self.ANCHOR, None, None), inputs.input_ids)
        if config.get("position_biased_input", True):
            table = get("embeddings.position_embeddings.weight", None, None)
            total = op.add(total, ops.embedding(table, inputs.position_ids))
        if int(config.get("type_vocab_size") or 0):
            types = get("embeddings.token_type_embeddings.weight", None, None)
            total = op.add(total, ops.embedding(types, inputs.type_ids))
        if "embeddings.embed_proj.weight" in self._layers.weights:
            total = self._layers.linear(total, "embeddings.embed_proj", None, self._hidden)
        return self._norm(total, "embeddings.LayerNorm")

    def _positions(self, inputs: Inputs) -> _Positions:
        reach = int(self._config.get("max_relative_positions") or -1)
        reach = int(setting(self._config, "max_position_embeddings")) if reach < 1 else reach
        buckets = int(self._config.get("position_buckets") or -1)
        span = buckets if buckets > 0 else reach
        table = self._layers.weights.get("encoder.rel_embeddings.weight", None, self._hidden)[: 2 * span]
        embeddings = op.unsqueeze(ops.constant(table), ops.axis(0))
        if "layer_norm" in str(self._config.get("norm_rel_ebd", "none")).lower():
            embeddings = self._norm(embeddings, "encoder.LayerNorm")
        behind = np.arange(self._max_len - 1, -self._max_len, -1)  # query less key, by key less query
        places = _log_buckets(behind, buckets, reach) if buckets > 0 else behind
        rows = np.clip(places + span, 0, 2 * span - 1)
        length = ops.row_length(inputs.input_ids)
        # A key at k that looks at a query at q wants the row of q - k, too: the table read the other way round.
        to_key, to_query = (ops.by_distance(table, self._max_len, length) for table in (rows, rows[::-1]))
        return _Positions(embeddings, to_key, to_query)

    def _layer(self, hidden: Node, mask: Node, positions: _Positions, prefix: str) -> Node:
        mixed = self._attention(hidden, mask, positions, prefix + "attention.self.")
        mixed = self._layers.linear(mixed, prefix + "attention.output.dense", self._hidden, self._hidden, bias=True)
        hidden = self._norm(op.add(mixed, hidden), prefix + "attention.output.LayerNorm")
        inner = self._layers.linear(hidden, prefix + "intermediate.dense", self._hidden, self._inner, bias=True)
        inner = self._layers.linear(
            self._activation(inner), prefix + "output.dense", self._inner, self._hidden, bias=True
        )
        return self._norm(op.add(inner, hidden), prefix + "output.LayerNorm")

    def _attention(self, x: Node, mask: Node, positions: _Positions, prefix: str) -> Node:
        query, key, value = (self._divided(x, f"{prefix}{name}_proj") for name in ("query", "key", "value"))
        shared = bool(self._config.get("share_att_key"))
        scores = op.matmul(query, key, False, True)
        if "c2p" in self._kinds:
            far = self._divided(positions.embeddings, prefix + ("key_proj" if shared else "pos_key_proj"))
            scores = op.add(scores, _pick(op.matmul(query, far, False, True), positions.to_key))
        if "p2c" in self._kinds:
            far = self._divided(positions.embeddings, prefix + ("query_proj" if shared else "pos_query_proj"))
            seen = _pick(op.matmul(key, far, False, True), positions.to_query)
            scores = op.add(scores, op.transpose(seen, ops.ints(0, 1, 3, 2)))
        scores = op.add(op.multiply(scores, op.constant(np.float32(self._scale))), mask)
        return ops.merge_heads(op.matmul(op.softmax(scores, -1), value, False, False), self._hidden)

    def _divided(self, x: Node, name: str) -> Node:
        width = self._hidden
        return ops.split_heads(
            self._layers.linear(x, name, width, width, bias=True), self._heads.keys, self._heads.size
        )

    def _convolve(self, x: Node, hidden: Node, inputs: Inputs) -> Node:
        """The first layer's output with a convolution of its input, which no text's tokens share with another's."""
        weight = self._layers.weights.get("encoder.conv.conv.weight", self._hidden, None, None)  # [out, in, places]
        bias = self._layers.weights.get("encoder.conv.conv.bias", self._hidden)
        if weight.shape[1] != self._hidden:
            raise UnsupportedModelError("config.json: conv_groups other than 1 is not supported")
        total, half = ops.constant(bias), weight.shape[2] // 2
        for place in range(weight.shape[2]):
            moved = ops.neighbours(x, inputs.segment_ids, place - half)
            total = op.add(total, ops.linear(moved, weight[:, :, place], None))
        act = ops.activation(str(self._config.get("conv_act", "tanh")))
        return self._norm(op.add(hidden, act(total)), "encoder.conv.LayerNorm")

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._eps)


def _log_buckets(distance: ops.Array, buckets: int, reach: int) -> ops.Array:
    """Exact up to half the buckets each way, logarithmic beyond."""
    middle = buckets // 2
    size = np.abs(distance).astype(np.float32)
    with np.errstate(divide="ignore"):
        steps = np.log(size / middle) / math.log((reach - 1) / middle) * np.float32(middle - 1)
    far = np.where(size > middle, np.ceil(np.where(size > middle, steps, 0)) + middle, 0)
    return np.where(size <= middle, distance, far * np.sign(distance)).astype(np.int64)


def _pick(scores: Node, rows: Node) -> Node:
    """[R, N, L, L] of scores [R, N, L, 2S]: for each pair of tokens the element that `rows` i64[L, L] names."""
    shape = op.shape_of(scores)
    target = op.concat([op.gather(shape, ops.ints(0, 1, 2, 2), ops.axis(0))], 0)
    return op.gather_elements(scores, op.broadcast(rows, target), 3)
