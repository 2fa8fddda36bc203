"""Computes the last layer only for the tokens whose vectors are used.

If pooling reads one token of each sequence (cls, last token), attention of the last layer needs the keys and values of
all tokens, but all operations after attention are needed for few tokens. Each of these operations maps every token by
itself, so tokens can be selected before them instead of after them (docs/decisions/038-last-layer.md).
"""

from __future__ import annotations

from openvino import Model, Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.stored import is_weight


def select_before_last_layer(model: Model, name: str) -> None:
    """Moves the Gather `name`, which selects token vectors, to the end of the last attention, in place.

    A Reshape gets its name and place. A model without attention, or without such a Gather, stays as it is.
    """
    nodes = model.get_ordered_ops()
    names = [node.get_friendly_name() for node in nodes]
    end = names.index(name)
    if ops.ATTENDED not in names or nodes[end].get_type_name() != "Gather":
        return
    start = max(index for index, each in enumerate(names) if each == ops.ATTENDED)
    gather, after = nodes[end], _after(nodes[start], nodes[start + 1 : end])
    indices = op.unsqueeze(gather.input_value(1), ops.axis(0))
    selected: dict[int, Node] = {}
    for node in after.values():
        for used in node.inputs():
            source = used.get_source_output().get_node()
            number = source.get_instance_id()
            if number not in after and not is_weight(source):
                if number not in selected:
                    selected[number] = ops.gather_tokens(source, indices)
                used.replace_source_output(selected[number].output(0))
    flat = gather.input_value(0)
    for target in gather.output(0).get_target_inputs():
        target.replace_source_output(flat)
    flat.get_node().set_friendly_name(name)


def _after(first: Node, later: list[Node]) -> dict[int, Node]:
    """Those of the `later` nodes, in topological order, that depend on `first`, by instance id."""
    found: dict[int, Node] = {}
    for node in later:
        sources = {value.get_node().get_instance_id() for value in node.input_values()}
        if first.get_instance_id() in sources or not found.keys().isdisjoint(sources):
            found[node.get_instance_id()] = node
    return found
