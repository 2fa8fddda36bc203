"""A whole model as one OpenVINO graph: encoder, pooling, the modules after it. Written from tensors, nothing exported.

Inputs (i32): input_ids, position_ids, segment_ids, type_ids [R, L]; starts, lengths [B], where a text's tokens begin in
the rows laid end to end, and how many they are. Segment ids number the texts of the batch from 0; padding has -1.
Output (f32): rows [B, D].
"""

from __future__ import annotations

from collections.abc import Callable

import openvino
from openvino import Node, Type
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.encoders import ANCHOR, FAMILIES, Encoder, Head, Inputs
from bei_core.engines.openvino.weights import Weights
from bei_core.errors import UnsupportedModel
from bei_core.spec import Classifier, Dense, ModelSpec, Normalize, Pooling

INPUT_NAMES = ("input_ids", "position_ids", "segment_ids", "type_ids", "starts", "lengths")

# Classes whose body is the family's encoder. Of what they have on top of it, only the head of a
# ForSequenceClassification is used.
_ARCHITECTURES = {
    "BertModel": "bert",
    "BertForMaskedLM": "bert",
    "BertForPreTraining": "bert",
    "RobertaModel": "roberta",
    "RobertaForMaskedLM": "roberta",
    "XLMRobertaModel": "xlm-roberta",
    "XLMRobertaForMaskedLM": "xlm-roberta",
    "DistilBertModel": "distilbert",
    "DistilBertForMaskedLM": "distilbert",
    "MPNetModel": "mpnet",
    "MPNetForMaskedLM": "mpnet",
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "xlm-roberta",
    "DistilBertForSequenceClassification": "distilbert",
    "MPNetForSequenceClassification": "mpnet",
}


def build_graph(spec: ModelSpec, checkpoint: Checkpoint) -> openvino.Model:
    """The model's graph with dynamic R, L and B. Raises UnsupportedModel, or CheckpointError naming a tensor."""
    name = _ARCHITECTURES.get(spec.architecture)
    if name is None:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise UnsupportedModel(f"architecture {spec.architecture} is not supported; known are {known}")
    family = FAMILIES[name]
    grid = [op.parameter([-1, -1], Type.i32, name=name) for name in INPUT_NAMES[:4]]
    spans = [op.parameter([-1], Type.i32, name=name) for name in INPUT_NAMES[4:]]
    weights = Weights(checkpoint.tensors(), anchor=ANCHOR, prefixes=family.prefixes)
    tokens = Encoder(family, spec.config, weights).graph(Inputs(*grid))
    rows = op.reshape(tokens, ops.ints(-1, spec.hidden_size), False)
    for module in spec.modules:
        if isinstance(module, Classifier):
            rows = _classify(module, family.head, _cls(rows, *spans), checkpoint)
        else:
            rows = _apply(module, rows, spans[0], spans[1], checkpoint)
    result = op.result(op.convert(rows, Type.f32), name="rows")
    return openvino.Model([result], [*grid, *spans], spec.architecture)


def _classify(classifier: Classifier, head: Head, x: Node, checkpoint: Checkpoint) -> Node:
    """Logits f32[B, C] of first tokens f32[B, H]."""
    weights = Weights(checkpoint.tensors(), anchor=f"{head.out}.weight", prefixes=("",))
    dense = ops.linear(x, weights.get(f"{head.dense}.weight", None, None), weights.get(f"{head.dense}.bias", None))
    count = len(classifier.labels)
    out = weights.get(f"{head.out}.weight", count, None), weights.get(f"{head.out}.bias", count)
    return ops.linear(ops.activation(head.activation)(dense), *out)


def _apply(module: Pooling | Dense | Normalize, x: Node, starts: Node, lengths: Node, checkpoint: Checkpoint) -> Node:
    """One module: Pooling makes f32[B, D] of f32[T, H], the others map [B, D]."""
    if isinstance(module, Pooling):
        pooled = [_POOLING[mode](x, starts, lengths) for mode in module.modes]
        return pooled[0] if len(pooled) == 1 else op.concat(pooled, -1)
    if isinstance(module, Normalize):
        return ops.l2_normalize(x)
    return _dense(module, x, checkpoint)


def _dense(module: Dense, x: Node, checkpoint: Checkpoint) -> Node:
    """A sentence-transformers Dense module (`base/modules/dense.py`)."""
    weights = Weights(checkpoint.tensors(module.folder), anchor="linear.weight", prefixes=("",))
    bias = weights.get("linear.bias", None) if module.bias else None
    y = ops.activation(module.activation)(ops.linear(x, weights.get("linear.weight", None, None), bias))
    if not module.residual:
        return y
    return op.add(
        y, ops.linear(x, weights.get("residual.weight", None, None), None) if "residual.weight" in weights else x
    )


def _column(x: Node) -> Node:
    """[B] to [B, 1]."""
    return op.unsqueeze(x, ops.axis(1))


def _upto(stop: Node) -> Node:
    """i32[1, stop]: 0, 1, 2 and so on."""
    return op.unsqueeze(op.range(_i32(0), stop, _i32(1), Type.i32), ops.axis(0))


def _i32(value: int) -> Node:
    return op.constant(value, Type.i32)


def _offsets(x: Node, starts: Node) -> Node:
    """i32[B, T]: the place of token t counted from the first token of text b."""
    num_tokens = op.gather(op.shape_of(x, Type.i32), ops.axis(0), ops.axis(0))
    return op.subtract(_upto(num_tokens), _column(starts))


def _members(offsets: Node, lengths: Node) -> Node:
    """f32[B, T]: 1 where token t belongs to text b, else 0."""
    inside = op.logical_and(op.greater_equal(offsets, _i32(0)), op.less(offsets, _column(lengths)))
    return op.convert(inside, Type.f32)


def _sum(x: Node, starts: Node, lengths: Node) -> Node:
    return op.matmul(_members(_offsets(x, starts), lengths), x, False, False)


def _mean(x: Node, starts: Node, lengths: Node) -> Node:
    return op.divide(_sum(x, starts, lengths), op.convert(_column(lengths), Type.f32))


def _mean_sqrt_len(x: Node, starts: Node, lengths: Node) -> Node:
    return op.divide(_sum(x, starts, lengths), op.sqrt(op.convert(_column(lengths), Type.f32)))


def _weighted_mean(x: Node, starts: Node, lengths: Node) -> Node:
    """Token i of n weighs i + 1 (Muennighoff 2022, SGPT)."""
    offsets = _offsets(x, starts)
    weights = op.multiply(_members(offsets, lengths), op.convert(op.add(offsets, _i32(1)), Type.f32))
    return op.divide(op.matmul(weights, x, False, False), op.reduce_sum(weights, ops.ints(1), True))


def _max(x: Node, starts: Node, lengths: Node) -> Node:
    """Each text's tokens, the last repeated up to the longest text's length, which changes no maximum."""
    longest = op.reduce_max(lengths, ops.axis(0), False)
    index = op.add(_column(starts), op.minimum(_upto(longest), op.subtract(_column(lengths), _i32(1))))
    return op.reduce_max(op.gather(x, index, ops.axis(0)), ops.ints(1), False)


def _cls(x: Node, starts: Node, lengths: Node) -> Node:
    return op.gather(x, starts, ops.axis(0))


def _last_token(x: Node, starts: Node, lengths: Node) -> Node:
    return op.gather(x, op.subtract(op.add(starts, lengths), _i32(1)), ops.axis(0))


_POOLING: dict[str, Callable[[Node, Node, Node], Node]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
