"""Heads after the transformer: classifiers of sequences and of tokens, SPLADE, and bge-m3's linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import COLBERT_LINEAR, SPARSE_LINEAR
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Layers
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.pooling import Spans, pool, total
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.configuration import Config
from bei_core.models.heads import (
    Head,
    activation_of,
    norm_eps,
    output_bias,
    output_weight,
    pooling_of,
    temperature_of,
    yes_no_row,
)
from bei_core.models.modules import Classifier, Pooling, Splade
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec


def pooling_modes(spec: ModelSpec, head: Head | None) -> tuple[PoolingMode | None, ...]:
    """How token vectors become the vector of a sequence; empty if they do not, None as in `models.heads.pooling_of`.

    `head` is that of the family's sequence classifiers. Raises as `known`.
    """
    first = spec.modules[0]
    if isinstance(first, Pooling):
        return first.modes
    if not isinstance(first, Classifier) or first.per_token:
        return ()
    if first.yes_no_ids is not None:
        return (PoolingMode.LAST_TOKEN,)
    return (pooling_of(known(head, spec.architecture), spec.config),)


def known(head: Head | None, architecture: str) -> Head:
    """The head. Raises UnsupportedModelError if there is none."""
    if head is None:
        raise UnsupportedModelError(f"the head of {architecture} is not supported")
    return head


def yes_no(ids: tuple[int | None, int], x: Node, checkpoint: Checkpoint, words: Sequence[str], config: Config) -> Node:
    """Logits f32[B, 1] of pooled vectors f32[B, H]; see `models.heads.yes_no_row`."""
    return ops.linear(x, yes_no_row(checkpoint.tensors(), ids, words, config), None)


def classify(classifier: Classifier, head: Head, x: Node, checkpoint: Checkpoint, config: Config) -> Node:
    """Logits f32[B, C] of pooled vectors f32[B, H], or f32[R * L, C] of token vectors f32[R * L, H]."""
    layers = Layers(Weights(checkpoint.tensors(), anchor=f"{head.out}.weight", prefixes=("",)))
    logits = layers.linear(_before_out(head, x, layers, config), head.out, None, len(classifier.labels))
    temperature = temperature_of(head, config)
    return logits if temperature == 1 else op.divide(logits, op.constant(np.float32(temperature)))


def splade_logits(head: Head, x: Node, words: Sequence[str], checkpoint: Checkpoint, config: Config) -> Node:
    """Logits f32[R * L, V] of a masked language model; `x` is f32[R * L, H].

    `words` and the errors are as for `models.heads.output_weight`.
    """
    tensors = checkpoint.tensors()
    weights = Weights(tensors, anchor=f"{head.dense}.weight", prefixes=("",))
    table = weights.get(output_weight(tensors, f"{head.out}.weight", words, config), None, None)
    bias = output_bias(tensors, head)
    x = _before_out(head, x, Layers(weights), config)
    return ops.linear(x, table, None if bias is None else weights.get(bias, len(table)))


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


def _before_out(head: Head, x: Node, layers: Layers, config: Config) -> Node:
    """f32[..., H]: the head's layers before its last one."""
    if (dense := head.dense_in(layers.weights)) is not None:
        x = ops.activation(activation_of(head, config))(layers.linear(x, dense, None, None))
    return x if head.norm is None else layers.layer_norm(x, head.norm, norm_eps(config), bias=False)
