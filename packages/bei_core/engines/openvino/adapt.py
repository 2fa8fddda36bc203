"""Adapts the graph of an engine folder, which is the same for all processors, to this one and to a precision."""

from __future__ import annotations

from openvino import Model, Node

from bei_core.engines.openvino.quantize.convolution import matmuls_to_convolutions
from bei_core.engines.openvino.stored import keep_weights_narrow

# The plugin reads this attribute of a node as a bool, from a string as YES or NO (intel_cpu/src/node.cpp).
_IN_BF16 = "enforceBF16evenForGraphTail"


def adapt(graph: Model, precision: str, *, as_convolutions: bool) -> None:
    """Changes a graph in place; `as_convolutions` makes convolutions of linear layers in int8."""
    if as_convolutions:
        matmuls_to_convolutions(graph)
    keep_weights_narrow(graph, precision)
    if precision == "bf16":
        _narrow_norms(graph)


def _narrow_norms(graph: Model) -> None:
    """Marks each LayerNorm but the last one, and the sums before it that nothing else reads, to be in bf16.

    The plugin keeps in f32 what follows the last matrix multiplication, and finds it from the outputs back: along the
    residual connections as far as the first layer. So all sums and norms were in f32, with conversions before and after
    them (docs/decisions/040-norms-in-bf16.md). A sum that is also the next residual grows from layer to layer, so it
    stays in f32, and so does the last norm, because its values are pooled.
    """
    for norm in [node for node in graph.get_ordered_ops() if node.get_type_name() == "MVN"][:-1]:
        total = norm.input_value(0).get_node()
        for node in [*_sums_before(total), norm, *_scale_and_shift(norm)]:
            node.get_rt_info()[_IN_BF16] = "YES"


def _sums_before(node: Node) -> list[Node]:
    """A sum and those that it adds up, such as that of a bias: all that nothing else reads."""
    if node.get_type_name() != "Add" or _only_reader(node) is None:
        return []
    return [node, *(each for source in node.input_values() for each in _sums_before(source.get_node()))]


def _scale_and_shift(norm: Node) -> list[Node]:
    """The product with the norm's weights and the sum with its biases, as far as it has them."""
    found = list[Node]()
    for kind in ("Multiply", "Add"):
        reader = _only_reader(found[-1] if found else norm)
        if reader is not None and reader.get_type_name() == kind:
            found.append(reader)
    return found


def _only_reader(node: Node) -> Node | None:
    readers = [target.get_node() for target in node.output(0).get_target_inputs()]
    return readers[0] if len(readers) == 1 else None
