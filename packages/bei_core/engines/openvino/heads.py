"""Heads after the transformer: classifiers of sequences and of tokens, SPLADE, and bge-m3's linear layers."""

from __future__ import annotations

from typing import cast

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import COLBERT_LINEAR, SPARSE_LINEAR
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Layers
from bei_core.engines.openvino.models.weights import HeadWeights, Weights
from bei_core.engines.openvino.pooling import Spans, pool, total
from bei_core.errors import CheckpointError
from bei_core.models.head_tensors import find_head_tensors, find_yes_no_row, head_of
from bei_core.models.heads import activation_of, norm_eps, temperature_of
from bei_core.models.modules import Splade
from bei_core.models.spec import ModelSpec


def head_layers(spec: ModelSpec, checkpoint: Checkpoint) -> Layers:
    """The layers of modules and head by the names of `find_head_tensors`."""
    return Layers(HeadWeights(find_head_tensors(checkpoint, spec)))


def logits(spec: ModelSpec, x: Node, layers: Layers, checkpoint: Checkpoint) -> Node:
    """Logits f32[..., C] of vectors f32[..., H]: of a classifier (pooled vectors or token vectors), or of SPLADE.

    Raises as `models.heads.yes_no_row` for a reranker that answers "yes" or "no".
    """
    head, config = head_of(spec), spec.config
    if head is None:  # of a yes/no reranker
        return ops.linear(x, cast("ops.Array", find_yes_no_row(checkpoint, spec)), None)
    if head.dense is not None:
        x = ops.activation(activation_of(head, config))(layers.linear(x, "dense", None, None))
    if head.norm is not None:
        x = layers.layer_norm(x, "norm", norm_eps(config), bias=False)
    found = layers.linear(x, "out", None, None if spec.classifier is None else len(spec.classifier.labels))
    temperature = temperature_of(head, config)
    return found if temperature == 1 else op.divide(found, op.constant(np.float32(temperature)))


def splade(module: Splade, logits: Node, spans: Spans) -> Node:
    """f32[B, V]: the weight of each term, of logits f32[R * L, V]."""
    # The logarithms are monotonic, so the maximum of the logits gives the same result, and is cheaper.
    x = op.relu(logits if module.sums else pool("max", logits, spans))
    for _ in range(module.num_logs):
        x = op.log(op.add(x, op.constant(np.float32(1))))
    return total(x, spans) if module.sums else x


def bge_m3(x: Node, checkpoint: Checkpoint) -> Node:
    """f32[R * L, E + 1]: the ColBERT vector of each token, L2-normalised, then its weight as a term, at least 0.

    `x` is f32[R * L, H]. FlagEmbedding (`finetune/embedder/encoder_only/m3/modeling.py`) has the two formulas.
    """
    vectors = ops.l2_normalize(_linear(x, checkpoint, COLBERT_LINEAR, None))
    return op.concat([vectors, op.relu(_linear(x, checkpoint, SPARSE_LINEAR, 1))], 1)


def _linear(x: Node, checkpoint: Checkpoint, file: str, size: int | None) -> Node:
    """f32[..., size]: the linear layer in a file of bge-m3. Raises CheckpointError, naming it, if it does not fit."""
    width = x.get_output_partial_shape(0)[1].get_length()
    try:
        weights = Weights(checkpoint.pickled(file), anchor="weight", prefixes=("",))
        weight = weights.get("weight", size, width)
        return ops.linear(x, weight, weights.get("bias", len(weight)))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
