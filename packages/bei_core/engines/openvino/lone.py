"""Adds graphs of fixed shape to a model: one for each length of a lone text (a batch of one text).

For each new shape of its inputs, the CPU plugin prepares every operation of a dynamic graph again, and texts that come
one at a time have a new shape each time. So a graph whose shapes are fixed runs a lone text. These graphs and the graph
for any batch are branches of If operations of one model, because the plugin shares packed weights only within a model
(docs/decisions/028-static-shapes.md).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import openvino
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.engines.batch import Batch
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import INPUT_NAMES, KEY_NAMES, OUTPUT_INDICES
from bei_core.engines.openvino.quantize.convolution import merge_transposes

# The most tokens of a lone text that runs in a graph of its own length or of the next longer one.
MAX_LENGTH = 128

# A model has graphs for the lengths that pad its first lone texts least. Each of _USUAL counts as one of these texts,
# so that other lengths, which may come later, are not padded much either.
_NUM_LENGTHS = 16
_USUAL = (*range(8, 64, 8), *range(64, MAX_LENGTH + 1, 16))

# The most memory of all these graphs, and the memory that a graph takes for each matrix multiplication, with the
# operations around it (measured).
_MAX_BYTES = 288 << 20
_BYTES_PER_MATMUL = 225 << 10

# While they are compiled, the packed weights are in memory twice.
_MAX_WEIGHTS = 512 << 20

LONE, CHOSEN = "lone", "chosen"  # inputs, besides those of the graph for any batch


class LoneInputs:
    """The input arrays of a model of `with_lone_graphs`: the lone text, and the choice of the graph to run."""

    def __init__(self, lengths: Sequence[int], pad_id: int) -> None:
        self._lengths, self._pad_id = lengths, pad_id
        lone, chosen = openvino.Tensor(Type.i32, [4, lengths[-1]]), openvino.Tensor(Type.boolean, [1 + len(lengths)])
        self.tensors = {LONE: lone, CHOSEN: chosen}
        self._lone, self._chosen = lone.data, chosen.data

    def choose(self, batch: Batch | None) -> int:
        """Chooses the graph for a batch. Returns the length of a lone text's graph, or 0 for the graph for any batch.

        None chooses the graph for any batch.
        """
        self._chosen[:] = 0
        if batch is None or len(batch) > 1 or batch.num_tokens > self._lengths[-1]:
            self._chosen[0] = 1
            return 0
        size = batch.num_tokens
        place = bisect_left(self._lengths, size)
        self._chosen[1 + place] = 1
        ids, types, segments, span = self._lone
        ids[:size], ids[size:] = batch.input_ids, self._pad_id
        types[:size], types[size:] = batch.type_ids, 0
        segments[:size], segments[size:] = 0, -1
        span[:2] = batch.skips[0], size - batch.skips[0]
        return self._lengths[place]


def lengths_for(dynamic: Model, max_seq_len: int, seen: Sequence[int], *, shared: bool) -> tuple[int, ...]:
    """Returns the lengths that have a graph: those that pad lone texts with the lengths `seen` least.

    The graphs take at most about _MAX_BYTES together; empty if no graph fits. `shared` says that all graphs use the
    same packed weights. Weights of 16 bits are never shared, because the plugin widens them for each graph.
    """
    nodes = dynamic.get_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    *weights, _embeddings = sorted(node.get_byte_size() for node in constants)
    if any(node.get_element_type() in {Type.bf16, Type.f16} for node in constants):
        weights, shared = [2 * size for size in weights], False
    num_matmuls = sum(node.get_type_name() in {"MatMul", "Convolution"} for node in nodes)
    num_fitting = _MAX_BYTES // (num_matmuls * _BYTES_PER_MATMUL + (0 if shared else sum(weights)))
    usual = [length for length in _USUAL if length <= max_seq_len]
    if sum(weights) > _MAX_WEIGHTS or not usual or not num_fitting:
        return ()
    return least_padding([*seen, *usual], min(_NUM_LENGTHS, num_fitting))


def least_padding(seen: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns at most `count` of the lengths: those that need least padding if each text is padded to the next.

    The longest is always one of them.
    """
    lengths, counts = zip(*sorted(Counter(seen).items()), strict=True)
    up_to = [0, *accumulate(counts)]  # number of texts before each length
    # For each length: the tokens of all texts up to it, with padding, and the lengths that they are padded to.
    best: list[tuple[int, tuple[int, ...]]] = [(length * up_to[i + 1], (length,)) for i, length in enumerate(lengths)]
    for _ in range(count - 1):
        best = [
            min(
                [one]
                + [
                    (tokens + length * (up_to[i + 1] - up_to[j + 1]), (*chosen, length))
                    for j, (tokens, chosen) in enumerate(best[:i])
                ]
            )
            for i, (length, one) in enumerate(zip(lengths, best, strict=True))
        ]
    return best[-1][1]


def with_lone_graphs(dynamic: Model, output: str, lengths: Sequence[int]) -> Model:
    """Returns a model with the inputs and outputs of `dynamic`, and the inputs LONE and CHOSEN.

    LONE i32[4, lengths[-1]] has a text's token ids, type ids, segment ids, and the start and number of the tokens that
    are pooled. CHOSEN bool[1 + len(lengths)] is true for the one graph to run: the first is `dynamic`, then there is
    one for each length. For a lone text, only `output` is computed.
    """
    inputs = [_parameter(each.friendly_name, each.partial_shape) for each in dynamic.get_parameters()]
    lone = _parameter(LONE, [4, lengths[-1]])
    chosen = _parameter(CHOSEN, [1 + len(lengths)], Type.boolean)
    is_batch, *is_length = op.split(chosen, ops.axis(0), 1 + len(lengths)).outputs()
    outputs = _batch_if(is_batch, dynamic, inputs)
    for length, condition in zip(lengths, is_length, strict=True):
        outputs[output] = _length_if(condition, _of_length(dynamic, output, length, lone), lone, outputs[output])
    return Model([_result(x, name) for name, x in outputs.items()], [*inputs, lone, chosen], dynamic.friendly_name)


def _batch_if(condition: openvino.Output, dynamic: Model, inputs: Sequence[Node]) -> dict[str, openvino.Output]:
    """Returns the outputs of `dynamic` by name if the condition holds, else one row of zeros for each."""
    batch = dynamic.clone()
    names = [each.any_name for each in batch.outputs]
    widths = [each.partial_shape[1].get_length() for each in batch.outputs]
    nothing = Model([op.result(op.constant(np.zeros((1, width), np.float32))) for width in widths], [], "nothing")
    choice = op.if_op(condition)
    choice.set_then_body(batch)
    choice.set_else_body(nothing)
    for outer, inner in zip(inputs, batch.get_parameters(), strict=True):
        choice.set_input(outer.output(0), inner, None)
    return {
        name: choice.set_output(*results)
        for name, *results in zip(names, batch.get_results(), nothing.get_results(), strict=True)
    }


def _length_if(condition: openvino.Output, model: Model, lone: Node, otherwise: openvino.Output) -> openvino.Output:
    """Returns the output of `model`, whose input is LONE, if the condition holds, else `otherwise`."""
    same = op.parameter(otherwise.get_partial_shape(), Type.f32)
    unchanged = Model([op.result(same)], [same], "unchanged")
    choice = op.if_op(condition)
    choice.set_then_body(model)
    choice.set_else_body(unchanged)
    choice.set_input(lone.output(0), model.get_parameters()[0], None)
    choice.set_input(otherwise, None, same)
    return choice.set_output(model.get_results()[0], unchanged.get_results()[0])


def _of_length(dynamic: Model, output: str, length: int, lone: Node) -> Model:
    """Returns a model with the input LONE: one output of `dynamic` for a row of `length` tokens, all shapes fixed."""
    model = dynamic.clone()
    for node in model.get_ops():  # else the plugin may share nodes of the same name, such as constants of two lengths
        node.set_friendly_name(f"{node.get_friendly_name()}/{length}")
    model.reshape({each.any_name: _fixed_shape(each, length) for each in model.inputs})
    merge_transposes(model)
    text = _parameter(LONE, lone.get_output_partial_shape(0))
    ids, types, segments = (_part(text, row, 0, length) for row in range(3))
    start, size = (op.squeeze(_part(text, 3, place, place + 1), ops.axis(0)) for place in range(2))
    positions = op.constant(np.arange(length, dtype=np.int32)[None])
    sources = dict(zip(INPUT_NAMES, (ids, positions, segments, types, start, size), strict=True))
    sources |= zip(KEY_NAMES, (segments, op.constant(np.arange(length, dtype=np.int32)[None]), segments), strict=True)
    sources[OUTPUT_INDICES] = op.constant(np.empty(0, np.int32))
    for parameter in model.get_parameters():
        for target in parameter.output(0).get_target_inputs():
            target.replace_source_output(sources[parameter.output(0).any_name].output(0))
    result = next(each for each in model.get_results() if output in each.output(0).get_names())
    return Model([result], [text], f"{length} tokens")


def _fixed_shape(source: openvino.Output, length: int) -> list[int]:
    """The shape of an input of a model for a lone text of `length` tokens whose rows of tokens are not wanted."""
    if source.partial_shape.rank == 2:
        return [1, length]
    return [0 if source.any_name == OUTPUT_INDICES else 1]


def _part(text: Node, row: int, start: int, stop: int) -> Node:
    """Returns i32[1, stop - start]: the elements from `start` to `stop` of one row of LONE."""
    return op.slice(text, ops.ints(row, start), ops.ints(row + 1, stop), ops.ints(1, 1))


def _parameter(name: str, shape: openvino.PartialShape | Sequence[int], kind: Type = Type.i32) -> Node:
    parameter = op.parameter(shape, kind, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _result(x: openvino.Output, name: str) -> Node:
    result = op.result(x)
    result.output(0).set_names({name})
    return result
