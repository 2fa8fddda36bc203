"""Runs a graph in f32 in parts, one after the other: only one part's f32 weights are in memory at a time.

All batches go through a part before the next one is compiled. So a model can be calibrated, and its f32 rows computed,
on a machine whose memory is too small for the whole model in f32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from openvino import Model, Node
from openvino import opset15 as op

from bei_core.engines.batch import Batch
from bei_core.engines.calibration import with_progress
from bei_core.engines.openvino.compiled import core
from bei_core.engines.openvino.engine import compile_properties
from bei_core.engines.openvino.graph import ROWS, TOKENS
from bei_core.engines.openvino.packing import pack_rows
from bei_core.engines.openvino.stored import drop_mapped_pages, keep_weights_narrow

Array = npt.NDArray[Any]

# A value that one part gives to another, or an output of the graph: a node's instance id and the index of its output.
_Key = tuple[int, int]

# Bytes of a part's weights, as stored. A part with more has a single operation. While a part runs, its weights are in
# memory twice in f32: as the constants that the plugin has widened, and packed for the kernels.
_MAX_PART_BYTES = 64 << 20

# An operation whose constants are a smaller share of that runs in the part of its latest input. The order of the graph
# may put it at the end, as it does with the statistics for calibration: the activations of all layers would wait there.
_MIN_SHARE = 1 / 1024


@dataclass(slots=True)
class _Part:
    """Operations that run together. Parameters and results are in the order of the keys."""

    parameters: dict[_Key, Node] = field(default_factory=dict)
    results: dict[_Key, Node] = field(default_factory=dict)

    def compile(self) -> openvino.InferRequest:
        model = Model(list(self.results.values()), list(self.parameters.values()), "part")
        keep_weights_narrow(model, "f32")
        return core().compile_model(model, "CPU", compile_properties("f32")).create_infer_request()


def reference_rows(graph: Model, batches: Sequence[Batch]) -> npt.NDArray[np.float32]:
    """f32[B, D] of all batches together, or f32[T, E] for a model that gives rows of tokens only."""
    names = [output.any_name for output in graph.outputs]
    wanted = names.index(ROWS if ROWS in names else TOKENS)
    rows: list[Array] = [np.empty(0)] * len(batches)
    for number, index, value in run_in_parts(graph, batches, "held-out texts in f32"):
        if index == wanted:
            batch = batches[number]
            rows[number] = value[: len(batch)] if ROWS in names else value[pack_rows(batch).token_indices]
    return np.concatenate(rows)


def run_in_parts(graph: Model, batches: Sequence[Batch], what: str) -> Iterator[tuple[int, int, Array]]:
    """(number of the batch, index of the output, value) of each output of a graph with the inputs of `build_graph`.

    The values come in the order of the parts. `what` is the title of the progress.
    """
    parts, inputs, outputs = _divide(graph)
    last_use = {key: number for number, part in enumerate(parts) for key in part.parameters}
    names = [parameter.get_friendly_name() for parameter in graph.get_parameters()]
    values = [dict(zip(inputs, pack_rows(batch).graph_inputs(names), strict=True)) for batch in batches]
    request: Any = None
    for _, (place, number) in with_progress(list(product(range(len(parts)), range(len(batches)))), what):
        part, known = parts[place], values[number]
        if number == 0:
            request = None  # frees the part before
            drop_mapped_pages(graph.checkpoint.folder)
            request = part.compile()
        # The inputs are copied: an output may share its memory with an input, also in the next call.
        request.infer([known[key] for key in part.parameters])
        for index, key in enumerate(part.results):
            value = np.array(request.get_output_tensor(index).data)
            if key in outputs:
                yield number, outputs[key], value
            else:
                known[key] = value
        for key in [key for key in part.parameters if last_use[key] == place]:
            known.pop(key, None)


def _divide(graph: Model) -> tuple[list[_Part], list[_Key], dict[_Key, int]]:
    """(parts of a copy of the graph, keys of its inputs, indices of its outputs by key)."""
    copied = graph.clone()
    inputs = copied.get_parameters()
    computed = downstream(inputs)
    part_of, last, size = dict[int, int](), 0, 0
    for node in copied.get_ordered_ops():
        if _id(node) not in computed:
            continue
        num_bytes = _weight_bytes(node, computed)
        if num_bytes < _MIN_SHARE * _MAX_PART_BYTES:
            part_of[_id(node)] = max(part_of.get(_id(value.get_node()), 0) for value in node.input_values())
            continue
        is_full = bool(size) and size + num_bytes > _MAX_PART_BYTES
        size, last = num_bytes if is_full else size + num_bytes, last + is_full
        part_of[_id(node)] = last
    parts = [_Part() for _ in range(1 + last)]
    outputs = {(_id(node), 0): index for index, node in enumerate(copied.get_results())}
    for node in copied.get_ordered_ops():
        if (_id(node), 0) in outputs:
            parts[part_of[_id(node)]].results[_id(node), 0] = node
        elif _id(node) in computed or node in inputs:
            _cut(node, parts, part_of)
    return parts, [(_id(node), 0) for node in inputs], outputs


def _cut(node: Node, parts: Sequence[_Part], part_of: dict[int, int]) -> None:
    """Replace a node's outputs in other parts by parameters."""
    own = part_of.get(_id(node))  # None for an input of the graph
    for output in node.outputs():
        key, users = (_id(node), output.get_index()), defaultdict[int, list[Any]](list)
        for target in output.get_target_inputs():
            users[part_of[_id(target.get_node())]].append(target)
        others = {place: targets for place, targets in users.items() if place != own}
        for place, targets in others.items():
            parameter = op.parameter(output.get_partial_shape(), output.get_element_type())
            parts[place].parameters[key] = parameter
            for target in targets:
                target.replace_source_output(parameter.output(0))
        if others and own is not None:
            parts[own].results[key] = op.result(output)


def downstream(nodes: Sequence[Node]) -> set[int]:
    """Instance ids of all nodes that depend on these."""
    found: set[int] = set()
    waiting = list(nodes)
    while waiting:
        for output in waiting.pop().outputs():
            for target in output.get_target_inputs():
                node = target.get_node()
                if _id(node) not in found:
                    found.add(_id(node))
                    waiting.append(node)
    return found


def _weight_bytes(node: Node, computed: set[int]) -> int:
    """Bytes of the constants that a node uses, also through operations on constants only."""
    sources = [value.get_node() for value in node.input_values() if value.get_node().get_type_name() != "Parameter"]
    own = int(node.get_byte_size()) if node.get_type_name() == "Constant" else 0
    return own + sum(_weight_bytes(source, computed) for source in sources if _id(source) not in computed)


def _id(node: Node) -> int:
    return int(node.get_instance_id())
