"""Lets the CPU plugin compute LayerNorms and residual sums in bf16, all but the last of them.

With the hint bf16, the plugin keeps in f32 what lies between the outputs and, searching back from them, the first
matrix multiplications. Residual connections lead around all of these, so in a model without a linear layer at its end
the search would reach the embeddings (docs/decisions/042-norms-in-bf16.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from openvino import Input, Model, Node, Output, Type
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.graph import TOKEN_VECTORS
from bei_core.engines.openvino.models.blocks import INPUT_NAMES
from bei_core.engines.openvino.stored import is_weight

# The identity has at most so many rows: it costs less than a linear layer, and its kernel is still a fast one.
_MAX_BLOCK = 64


def keep_only_last_sum_wide(graph: Model) -> None:
    """Changes a graph in place so that, in bf16, only its last residual sum and what follows it are in f32.

    The residual of that sum is multiplied by the identity, and the plugin's search ends there. The product has the
    values of the residual in bf16. A graph whose outputs all follow a linear layer stays as it is, and so does one
    without LayerNorms: decoders would lose accuracy, and gain no time.
    """
    if all(node.get_type_name() != "MVN" for node in graph.get_ops()):
        return
    tail = _tail(result.input_value(0) for result in graph.get_results())
    vectors = [node for node in tail.values() if node.get_friendly_name() == TOKEN_VECTORS]
    before = _tail(output for node in vectors for output in node.outputs())
    for node in reversed(graph.get_ordered_ops()):
        residual = _residual(node) if node.get_instance_id() in before else None
        if residual is not None:
            residual.replace_source_output(_times_identity(residual.get_source_output()).output(0))
            return


def _tail(outputs: Iterable[Output]) -> dict[int, Node]:
    """The nodes that these outputs come from, by instance id, up to matrix multiplications, which are left out."""
    found, waiting = dict[int, Node](), [output.get_node() for output in outputs]
    while waiting:
        node = waiting.pop()
        if node.get_instance_id() not in found and node.get_type_name() != "MatMul":
            found[node.get_instance_id()] = node
            waiting += (value.get_node() for value in node.input_values())
    return found


def _residual(node: Node) -> Input | None:
    """The input of a residual sum that leads to the token ids around all matmuls; None for any other node."""
    is_sum = node.get_type_name() == "Add" and node.get_output_element_type(0) == Type.f32
    if not is_sum or any(is_weight(value.get_node()) for value in node.input_values()):
        return None
    found = [each for each in node.inputs() if _reads_ids(each.get_source_output())]
    return found[0] if len(found) == 1 else None


def _reads_ids(output: Output) -> bool:
    return any(node.get_friendly_name() == INPUT_NAMES[0] for node in _tail([output]).values())


def _times_identity(x: Output) -> Node:
    """`x` f32[..., H], multiplied by the identity in blocks: the largest that H consists of."""
    rank, width = len(x.get_partial_shape()), x.get_partial_shape()[-1].get_length()
    block = max(size for size in range(1, _MAX_BLOCK + 1) if width % size == 0)
    kept = [0] * (rank - 1)  # sizes that stay as they are
    blocks = op.reshape(x, ops.ints(*kept, width // block, block), True)
    product = op.matmul(blocks, ops.constant(np.eye(block, dtype=np.float32)), False, True)
    return op.reshape(product, ops.ints(*kept, width), True)
