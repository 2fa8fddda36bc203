"""A whole model as one OpenVINO graph: transformer, pooling, modules and heads, built from the checkpoint's tensors.

Inputs (i32): input_ids, position_ids, segment_ids, type_ids [R, L] and starts, lengths [B], as in `packing.PackedRows`.
A graph that shares prefixes has three more: prefix_ids [R, L], key_indices and key_segment_ids [R, K]. A graph whose
pooling reads one token of each sequence has output_indices [O], the indices of the tokens whose vectors are an output.
Outputs (f32), if the model has them: rows [B, D] and tokens [O, E]. Without output_indices, O is R * L.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import openvino
from openvino import Node, Type
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint
from bei_core.engines.openvino import heads, ops
from bei_core.engines.openvino.last_layer import select_before_last_layer
from bei_core.engines.openvino.models.blocks import INPUT_NAMES, KEY_NAMES, OUTPUT_INDICES, Inputs, Keys, Layers
from bei_core.engines.openvino.models.transformer import token_vectors
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.pooling import Spans, pooled_rows, pooled_token
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import Family, family_of
from bei_core.models.modules import (
    LAYER_NORM_EPS,
    Classifier,
    Dense,
    LayerNorm,
    Module,
    Normalize,
    Pooling,
    Scores,
    Splade,
    Truncate,
)
from bei_core.models.spec import ModelSpec

ROWS, TOKENS = "rows", "tokens"

MAX_LENGTH = 1 << 21  # in tokens; limits the memory of position tables, which have a row for each position

# Name of the transformer's last node; after it come pooling, modules and heads.
TOKEN_VECTORS = "token_vectors"  # noqa: S105 - no secret


def family_for(spec: ModelSpec) -> Family:
    """The model's family. Raises UnsupportedModelError for an unknown one, or an input that is too long."""
    if spec.max_seq_len > MAX_LENGTH:
        raise UnsupportedModelError(
            f"the model's longest input is {spec.max_seq_len} tokens, more than {MAX_LENGTH}; set max_seq_length in "
            "sentence_bert_config.json, or model_max_length in tokenizer_config.json"
        )
    return family_of(spec.architecture)


def shares_prefixes(spec: ModelSpec) -> bool:
    """Whether first tokens that several sequences share can be computed once.

    It needs causal attention, and an output that depends on the vector of one token: the last one, or each one alone.
    """
    first, family = spec.modules[0], family_of(spec.architecture)
    if isinstance(first, Pooling):
        one_token = first.modes == ("lasttoken",)  # PoolingMode.LAST_TOKEN
    else:
        one_token = isinstance(first, Classifier) or spec.is_late_interaction
    return one_token and family.layout.is_causal(spec.config)


def build_graph(spec: ModelSpec, checkpoint: Checkpoint) -> openvino.Model:
    """The model's graph with dynamic R, L and B.

    Raises UnsupportedModelError, and CheckpointError for a tensor that is missing or has the wrong shape.
    """
    family = family_for(spec)
    rows = [op.parameter([-1, -1], Type.i32, name=name) for name in INPUT_NAMES[:4]]
    spans = [op.parameter([-1], Type.i32, name=name) for name in INPUT_NAMES[4:]]
    weights = Weights(checkpoint.tensors(), anchor=family.anchor, prefixes=family.prefixes)
    keys = [op.parameter([-1, -1], Type.i32, name=name) for name in KEY_NAMES] if shares_prefixes(spec) else []
    inputs = Inputs(rows[0], rows[1], rows[2], rows[3], Keys(*keys) if keys else None)
    tokens = token_vectors(family, spec.config, weights, spec.max_seq_len, inputs)
    width = tokens.get_output_partial_shape(0)[2].get_length()
    tokens = op.reshape(tokens, ops.ints(-1, width), False)
    ids = op.reshape(rows[0], ops.ints(-1), False)
    index = pooled_token(spec, ids, Spans(*spans))
    if index is None:
        tokens.set_friendly_name(TOKEN_VECTORS)
        pooled = pooled_rows(spec, tokens, Spans(*spans))
    else:
        wanted = op.parameter([-1], Type.i32, name=OUTPUT_INDICES)
        chosen = op.gather(tokens, op.concat([index, wanted], 0), ops.axis(0), name=TOKEN_VECTORS)
        pooled, tokens = ops.split_at(chosen, op.shape_of(index))
        keys.append(wanted)
    results, layers = [], heads.head_layers(spec, checkpoint)
    for name, x in _Heads(spec, checkpoint, layers, Spans(*spans)).outputs(tokens, pooled).items():
        result = op.result(op.convert(x, Type.f32), name=name)
        result.output(0).set_names({name})
        results.append(result)
    model = openvino.Model(results, [*rows, *spans, *keys], spec.architecture)
    select_before_last_layer(model, TOKEN_VECTORS)
    model.checkpoint = checkpoint  # its files stay mapped as long as the graph
    return model


@dataclass(frozen=True, slots=True)
class _Heads:
    """Modules and heads, which follow the token vectors and their pooling."""

    spec: ModelSpec
    checkpoint: Checkpoint
    layers: Layers  # of modules and head
    spans: Spans

    def outputs(self, tokens: Node, pooled: Node | None) -> dict[str, Node]:
        """The graph's outputs by name, of token vectors f32[R * L, H] and pooled vectors f32[B, H], if any."""
        modules = self.spec.modules
        if self.spec.is_late_interaction:
            return {TOKENS: ops.l2_normalize(self._apply(modules, tokens))}
        first, *rest = modules
        if isinstance(first, Classifier):
            return {TOKENS if pooled is None else ROWS: self._logits(tokens if pooled is None else pooled)}
        if isinstance(first, Splade):
            return {ROWS: heads.splade(first, self._logits(tokens), self.spans)}
        if isinstance(self.spec.classifier, Scores):
            return {ROWS: self._apply(rest[:-1], pooled)}
        found = tokens if self.spec.bge_m3 is None else heads.bge_m3(tokens, self.checkpoint)
        return {ROWS: self._apply(rest, pooled), TOKENS: found}

    def _logits(self, x: Node) -> Node:
        return heads.logits(self.spec, x, self.layers, self.checkpoint)

    def _apply(self, modules: Sequence[Module], x: Node) -> Node:
        """The output of the modules after pooling, applied one after the other."""
        for module in modules:
            if isinstance(module, Dense):
                x = self._dense(module, x)
            elif isinstance(module, Normalize):
                x = ops.l2_normalize(x)
            elif isinstance(module, LayerNorm):
                x = self.layers.layer_norm(x, f"{module.folder}.norm", LAYER_NORM_EPS)
            elif isinstance(module, Truncate):
                x = op.slice(x, ops.ints(0), ops.ints(module.dimensions), ops.ints(1), ops.ints(-1))
            else:
                raise UnsupportedModelError(f"{type(module).__name__} cannot follow another module")
        return x

    def _dense(self, module: Dense, x: Node) -> Node:
        """f32[..., out]: a Dense module (sentence-transformers 6.2, `base/modules/dense.py`)."""
        width = x.get_output_partial_shape(0)[1].get_length()
        y = self.layers.linear(x, f"{module.folder}.linear", width, None, bias=module.bias)
        y = ops.activation(module.activation)(y)
        if not module.residual:
            return y
        residual = f"{module.folder}.residual"
        has_weight = f"{residual}.weight" in self.layers.weights
        return op.add(y, self.layers.linear(x, residual, None, None) if has_weight else x)
