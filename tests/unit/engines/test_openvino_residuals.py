"""In bf16, the plugin keeps only the last residual sum, what follows it, and the last norm in f32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.compiled import core
from bei_core.engines.openvino.engine import compile_properties
from bei_core.engines.openvino.graph import TOKEN_VECTORS
from bei_core.engines.openvino.models.blocks import INPUT_NAMES
from bei_core.engines.openvino.residuals import keep_only_last_sum_wide

WIDTH = 96
LAYERS = 3
IDS = np.arange(6, dtype=np.int32).reshape(2, 3)


def layer_norm(x: Node, weight: ops.Array) -> Node:
    return ops.layer_norm(x, weight, weight, 1e-5)


def model(
    *, normalises_before: bool = False, has_head: bool = False, norm: Callable[[Node, ops.Array], Node] = layer_norm
) -> Model:
    """A model whose layers are a linear layer with a residual connection and a norm, before or after it."""
    random = np.random.default_rng(0)
    ids = op.parameter([-1, -1], Type.i32, name=INPUT_NAMES[0])
    hidden = ops.embedding(random.standard_normal((8, WIDTH), np.float32), ids)
    for layer in range(LAYERS):
        weight, scale = random.standard_normal((WIDTH, WIDTH), np.float32), random.standard_normal(WIDTH, np.float32)
        inner = norm(hidden, scale) if normalises_before else hidden
        total = op.add(ops.linear(inner, weight, scale), hidden)
        total.set_friendly_name(f"sum {layer}")
        hidden = total if normalises_before else norm(total, scale)
    hidden = norm(hidden, scale) if normalises_before else hidden
    vectors = op.reshape(hidden, ops.ints(-1, WIDTH), False, name=TOKEN_VECTORS)
    return Model([ops.linear(vectors, weight, None) if has_head else ops.l2_normalize(vectors)], [ids])


def types(graph: Model, precision: str = "bf16") -> dict[str, list[str]]:
    """The types of the results of all norms and residual sums in a compiled model, in order."""
    compiled = core().compile_model(graph, "CPU", compile_properties(precision))
    found = dict[str, list[str]](norm=[], sum=[])
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {name: node.get_rt_info()[name].astype(str) for name in ("layerType", "outputPrecisions")}
        kind = "norm" if facts["layerType"] == "MVN" else node.get_friendly_name().split()[0]
        if kind in found and facts["layerType"] != "Reorder":
            found[kind].append(facts["outputPrecisions"])
    return found


@pytest.fixture
def narrow() -> str:
    """What the plugin computes in with the hint bf16: f32 on a processor without bf16."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def test_norms_after_sums_are_in_bf16_but_the_last(narrow: str) -> None:
    graph = model()
    wide = ["f32"] * LAYERS
    assert types(graph) == {"norm": wide, "sum": wide}, "else nothing needs to be changed any more"
    keep_only_last_sum_wide(graph)
    mostly_narrow = [narrow] * (LAYERS - 1) + ["f32"]
    assert types(graph) == {"norm": mostly_narrow, "sum": mostly_narrow}


def test_sums_after_norms_are_in_bf16_but_the_last(narrow: str) -> None:
    graph = model(normalises_before=True)
    norms = [narrow] * LAYERS + ["f32"]
    assert types(graph) == {"norm": norms, "sum": ["f32"] * LAYERS}
    keep_only_last_sum_wide(graph)
    assert types(graph) == {"norm": norms, "sum": [narrow] * (LAYERS - 1) + ["f32"]}


def test_a_graph_read_from_an_export_computes_the_same(narrow: str) -> None:
    graph = model()
    keep_only_last_sum_wide(graph)
    compiled = core().compile_model(graph, "CPU", compile_properties("bf16"))
    again = core().import_model(compiled.export_model().getvalue(), "CPU", compile_properties("bf16"))
    rows, same = (each({0: IDS})[0] for each in (compiled, again))
    np.testing.assert_array_equal(rows, same)
    wide = core().compile_model(model(), "CPU", compile_properties("f32"))({0: IDS})[0]
    assert (rows * wide).sum(1).min() > 0.999
    assert np.array_equal(rows, wide) == (narrow == "f32")


def test_f32_stays_exact() -> None:
    graph = model()
    properties = compile_properties("f32")
    expected = core().compile_model(graph, "CPU", properties)({0: IDS})[0]
    keep_only_last_sum_wide(graph)
    np.testing.assert_array_equal(core().compile_model(graph, "CPU", properties)({0: IDS})[0], expected)


def test_a_graph_without_layer_norms_stays_as_it_is() -> None:
    graph = model(norm=lambda x, weight: ops.rms_norm(x, weight, 1e-5))
    nodes = [node.get_instance_id() for node in graph.get_ops()]
    keep_only_last_sum_wide(graph)
    assert [node.get_instance_id() for node in graph.get_ops()] == nodes


def test_a_graph_that_ends_with_a_linear_layer_stays_as_it_is() -> None:
    graph = model(has_head=True)
    nodes = [node.get_instance_id() for node in graph.get_ops()]
    keep_only_last_sum_wide(graph)
    assert [node.get_instance_id() for node in graph.get_ops()] == nodes
