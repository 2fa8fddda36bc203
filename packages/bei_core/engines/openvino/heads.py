"""Heads after the transformer: classifiers of sequences and of tokens, yes/no rerankers, SPLADE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Layers
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.pooling import Spans, last_non_padding_token, pool
from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config
from bei_core.models.families import Head
from bei_core.models.modules import Classifier


def classify(
    classifier: Classifier, head: Head, x: Node, ids: Node, spans: Spans, checkpoint: Checkpoint, config: Config
) -> Node:
    """Logits f32[B, C], or f32[R * L, C] of a token classifier; `x` is f32[R * L, H], `ids` are i32[R * L]."""
    layers = Layers(Weights(checkpoint.tensors(), anchor=f"{head.out}.weight", prefixes=("",)))
    rows = x if classifier.per_token else _POOLINGS[head.pooling](x, ids, spans, config)
    logits = layers.linear(_before_out(head, rows, layers, config), head.out, None, len(classifier.labels))
    temperature = float(config.get(head.temperature or "") or 1)
    return logits if temperature == 1 else op.divide(logits, op.constant(np.float32(temperature)))


def yes_no_logit(
    answers: tuple[int | None, int], x: Node, spans: Spans, embeddings: Weights, checkpoint: Checkpoint
) -> Node:
    """f32[B, 1]: the logit of "yes" minus the logit of "no" after each sequence's last token; `x` is f32[R * L, H].

    `answers` are the ids of "no" (None: its logit counts as 0) and "yes"; only these rows of the output matrix are in
    the graph. A model with tied weights has no lm_head: then the rows come from `embeddings`.
    """
    untied = "lm_head.weight" in checkpoint.tensors()
    weights = Weights(checkpoint.tensors(), anchor="lm_head.weight", prefixes=("",)) if untied else embeddings
    table = weights.get("lm_head.weight" if untied else "embed_tokens.weight", None, None)
    no, yes = answers
    row = table[yes] if no is None else table[yes] - table[no]
    return ops.linear(pool("lasttoken", x, spans), row[None], None)


def splade(head: Head, x: Node, spans: Spans, embeddings: ops.Array, checkpoint: Checkpoint, config: Config) -> Node:
    """f32[B, V]: the maximum over each sequence's tokens of log(1 + relu(logit)) (SPLADE-max, Formal et al. 2021).

    `x` is f32[R * L, H]. `embeddings` f32[V, H] is the output matrix of a checkpoint with tied weights.
    """
    weights = Weights(checkpoint.tensors(), anchor=f"{head.dense}.weight", prefixes=("",))
    layers, name = Layers(weights), f"{head.out}.weight"
    table = weights.get(name, None, None) if name in weights else embeddings
    bias = next((known for known in (head.bias, f"{head.out}.bias") if known and known in weights), None)
    logits = ops.linear(
        _before_out(head, x, layers, config), table, None if bias is None else weights.get(bias, len(table))
    )
    # log(1 + relu(x)) is monotonic, so the maximum may come first, where it is cheaper.
    return op.log(op.add(op.relu(pool("max", logits, spans)), op.constant(np.float32(1))))


def _before_out(head: Head, x: Node, layers: Layers, config: Config) -> Node:
    """f32[..., H]: the head's layers before its last one."""
    if head.dense is not None:
        name = str(config.get(head.activation_of or "") or head.activation)
        x = ops.activation(name)(layers.linear(x, head.dense, None, None))
    return x if head.norm is None else layers.layer_norm(x, head.norm, _eps(config), bias=False)


def _eps(config: Config) -> float:
    return float(config.get("layer_norm_eps") or config.get("norm_eps") or 1e-12)


def _by_config(x: Node, ids: Node, spans: Spans, config: Config) -> Node:
    return pool(str(config.get("classifier_pooling", "cls")), x, spans)


def _by_nvidia_config(x: Node, ids: Node, spans: Spans, config: Config) -> Node:
    """By the key `pooling` of NVIDIA's bidirectional Llama. Raises UnsupportedModelError for other poolings."""
    name = str(config.get("pooling", "avg"))
    if name not in _NVIDIA_POOLINGS:
        raise UnsupportedModelError(
            f"config.json: pooling {name!r} is not supported; known are {', '.join(_NVIDIA_POOLINGS)}"
        )
    return pool(_NVIDIA_POOLINGS[name], x, spans)


def _last(x: Node, ids: Node, spans: Spans, config: Config) -> Node:
    pad_id = config.get("pad_token_id")
    return pool("lasttoken", x, spans) if pad_id is None else last_non_padding_token(x, ids, spans, int(pad_id))


_NVIDIA_POOLINGS = {"avg": "mean", "cls": "cls", "last": "lasttoken"}
_POOLINGS: dict[str, Callable[[Node, Node, Spans, Config], Node]] = {
    "cls": lambda x, ids, spans, config: pool("cls", x, spans),
    "classifier_pooling": _by_config,
    "pooling": _by_nvidia_config,
    "last non-padding token": _last,
}
