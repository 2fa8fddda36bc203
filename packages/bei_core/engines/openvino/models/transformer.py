"""The transformer of every family as one graph: `TensorNames` and `Sizes` say what a checkpoint has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Keys, Layers, gated_activation, multi_head_attention
from bei_core.engines.openvino.models.deberta import Positions, add_convolution, disentangled_attention
from bei_core.engines.openvino.models.embeddings import embed
from bei_core.engines.openvino.models.experts import mix_experts, route
from bei_core.engines.openvino.models.static import look_up
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import Rope, make_ropes
from bei_core.models.configuration import Config
from bei_core.models.distances import alibi_slopes
from bei_core.models.families import Family
from bei_core.models.tensor_names import find_names


def token_vectors(family: Family, config: Config, weights: Weights, max_len: int, inputs: Inputs) -> Node:
    """The vectors f32[R, L, H] of a checkpoint's tokens; `max_len` is the length of the longest sequence."""
    if family.is_static:
        return look_up(family, config, weights, inputs)
    return _Transformer(family, config, weights, max_len).graph(inputs)


@dataclass(frozen=True, slots=True)
class _Context:
    """What the attention of all layers of one type uses."""

    mask: Node  # f32[R, 1 or N, L, K], or [R, 1 or N, L, L] if a row's keys are its own tokens
    rope: Rope | None  # at the positions of the queries
    key_rope: Rope | None  # at the positions of the keys
    keys: Keys | None  # None: a row's keys are its own tokens
    positions: Positions | None  # DeBERTa's


class _Transformer:
    """The graph of one checkpoint."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        self._names = find_names(family.layout.names, weights)
        self._sizes = family.layout.fit(family.layout.sizes(config), self._names, weights)
        self._layers, self._max_len = Layers(weights), max_len

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H], or f32[R, L, D] if the model projects them at the end."""
        first = hidden = embed(self._layers, self._names, self._sizes, inputs)
        layer_types = self._sizes.layer_types
        contexts = {name: self._context(name, inputs) for name in dict.fromkeys(layer_types)}
        layer = self._pre_norm_layer if self._names.is_pre_norm else self._post_norm_layer
        for number, name in enumerate(layer_types):
            hidden = layer(hidden, number, contexts[name])
            if number == 0:
                hidden = add_convolution(hidden, first, self._layers, self._sizes, inputs)
        return self._project(self._norm(hidden, "", self._names.final_norm))

    def _context(self, layer_type: str, inputs: Inputs) -> _Context:
        sizes, keys = self._sizes, inputs.keys
        mask = inputs.mask(causal=sizes.causal, window=sizes.window_of(layer_type))
        if sizes.has_alibi:  # minus the distances, before the slope of each head
            mask = op.subtract(mask, ops.distances(inputs.position_ids))
        if self._names.relative_bias:
            mask = op.add(mask, self._relative_bias(inputs))
        ropes: list[Rope | None] = [None]
        if sizes.has_rope:
            at = [inputs.position_ids] if keys is None else [inputs.position_ids, keys.select(inputs.position_ids)]
            ropes = [*make_ropes(sizes.config, sizes.heads.head_size, at, self._max_len, layer_type=layer_type)]
        positions = None
        if sizes.disentangled is not None:
            positions = Positions.of(self._layers, sizes, sizes.disentangled, self._max_len, inputs)
        return _Context(mask, ropes[0], ropes[-1], keys, positions)

    def _relative_bias(self, inputs: Inputs) -> Node:
        """f32[1, N, L, L]: what is added to scores by the distance of two tokens (MPNet, T5)."""
        sizes, name = self._sizes, f"{self._names.relative_bias}.weight"
        table = self._layers.weights.get(name, sizes.num_buckets, sizes.heads.num_heads)
        length = ops.row_length(inputs.input_ids)
        return ops.relative_bias(table, self._max_len, length, max_distance=sizes.max_distance)

    def _pre_norm_layer(self, hidden: Node, number: int, context: _Context) -> Node:
        names, prefix = self._names, self._names.layer.format(number)
        x = self._norm(hidden, prefix, names.attention_norm) if names.has_attention_norm(number) else hidden
        attended = self._norm(self._attention(x, prefix, context), prefix, names.attention_out_norm)
        hidden = op.add(hidden, attended)
        inner = self._mlp(self._norm(hidden, prefix, names.mlp_norm), prefix)
        return op.add(hidden, self._norm(inner, prefix, names.mlp_out_norm))

    def _post_norm_layer(self, hidden: Node, number: int, context: _Context) -> Node:
        names, prefix = self._names, self._names.layer.format(number)
        attended = op.add(self._attention(hidden, prefix, context), hidden)
        attended = self._norm(attended, prefix, names.attention_norm)
        if names.attention_out_norm:  # the input of the layer is added once more
            attended = self._norm(op.add(hidden, attended), prefix, names.attention_out_norm)
        return self._norm(op.add(self._mlp(attended, prefix), attended), prefix, names.mlp_norm)

    def _attention(self, x: Node, prefix: str, context: _Context) -> Node:
        sizes, names = self._sizes, self._names
        qkv = self._split_heads(self._qkv(x, prefix, context.keys), prefix)
        if context.positions is not None:
            attended = disentangled_attention(qkv, self._layers, prefix, sizes, context.mask, context.positions)
        else:
            attended = multi_head_attention(
                qkv,
                sizes.heads,
                context.mask,
                rope=context.rope,
                key_rope=context.key_rope,
                soft_cap=sizes.soft_cap,
                slopes=alibi_slopes(sizes.heads.num_heads) if sizes.has_alibi else None,
            )
        return self._layers.linear(attended, prefix + names.out, sizes.heads.width, sizes.hidden, bias=sizes.out_bias)

    def _qkv(self, x: Node, prefix: str, keys: Keys | None) -> list[Node]:
        """Query [R, L, N * S], key and value [R, K, heads * S] at the `keys`, else [R, L, heads * S]."""
        sizes, names = self._sizes, [prefix + name for name in self._names.qkv]
        qkv = self._layers.linears(x, names, sizes.heads.widths, size_in=sizes.hidden, bias=sizes.qkv_bias)
        return qkv if keys is None else [qkv[0], *(keys.select(each) for each in qkv[1:])]

    def _split_heads(self, qkv: Sequence[Node], prefix: str) -> list[Node]:
        """Query [R, N, L, S], key and value [R, K, L, S]; RMSNorm is over each head, LayerNorm over all (JinaBERT)."""
        heads, is_rms = self._sizes.heads, self._sizes.is_rms
        qkv = qkv if is_rms else self._norm_query_key(qkv, prefix)
        numbers = (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
        split = [ops.split_heads(x, number, heads.head_size) for x, number in zip(qkv, numbers, strict=True)]
        return self._norm_query_key(split, prefix) if is_rms else split

    def _norm_query_key(self, qkv: Sequence[Node], prefix: str) -> list[Node]:
        query_norm, key_norm = self._names.qk_norms or ("", "")
        return [self._norm(qkv[0], prefix, query_norm), self._norm(qkv[1], prefix, key_norm), qkv[2]]

    def _mlp(self, x: Node, prefix: str) -> Node:
        """A gated MLP, a plain MLP or experts (Nomic Embed v2)."""
        names, sizes = self._names, self._sizes
        if sizes.experts is not None and f"{prefix}{names.router}.weight" in self._layers.weights:
            shares = route(x, self._layers, prefix + names.router, sizes.experts)
            return mix_experts(x, self._layers, prefix + names.experts, shares, sizes.activation)
        inner = self._gated(x, prefix) if sizes.is_gated else self._plain(x, prefix + names.up)
        size = sizes.intermediate_size
        return self._layers.linear(inner, prefix + names.down, size, sizes.hidden, bias=sizes.mlp_out_bias)

    def _gated(self, x: Node, prefix: str) -> Node:
        sizes, names = self._sizes, [prefix + name for name in self._names.gated]
        inner = (sizes.intermediate_size,) * 2
        first, second = self._layers.linears(x, names, inner, size_in=sizes.hidden, bias=sizes.mlp_bias)
        gate, up = (second, first) if self._names.up_first else (first, second)
        return gated_activation(gate, up, sizes.activation)

    def _plain(self, x: Node, name: str) -> Node:
        sizes = self._sizes
        inner = self._layers.linear(x, name, sizes.hidden, sizes.intermediate_size, bias=sizes.mlp_bias)
        return ops.activation(sizes.activation)(inner)

    def _project(self, hidden: Node) -> Node:
        """f32[R, L, D] of token vectors f32[R, L, H]: the last layer of some bidirectional models; else unchanged."""
        name, outside = self._names.final_projection, self._layers.weights.without_prefix()
        if not name or f"{name}.weight" not in outside:
            return hidden
        return Layers(outside).linear(hidden, name, self._sizes.hidden, None)

    def _norm(self, x: Node, prefix: str, name: str) -> Node:
        """LayerNorm or RMSNorm; `x` itself if there is no such layer."""
        return self._layers.norm(x, prefix + name, self._sizes) if name else x
