"""The plugin computes in bf16 all norms but the last, and the sums that only a norm reads."""

from __future__ import annotations

import numpy as np
from openvino import Model
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.adapt import adapt
from bei_core.engines.openvino.compiled import core
from bei_core.engines.openvino.engine import compile_properties

WIDTH = 64
LAYERS = 3


def model(*, normalises_before: bool) -> Model:
    """A model whose layers are a linear layer with a residual connection and a norm, before or after it."""
    random = np.random.default_rng(0)
    x = op.parameter([-1, WIDTH], np.float32, name="x")
    hidden = op.relu(x)
    for layer in range(LAYERS):
        weight, scale = random.standard_normal((WIDTH, WIDTH), np.float32), random.standard_normal(WIDTH, np.float32)
        inner = ops.layer_norm(hidden, scale, scale, 1e-5) if normalises_before else hidden
        total = op.add(ops.linear(inner, weight, None), hidden)
        total.set_friendly_name(f"sum {layer}")
        hidden = total if normalises_before else ops.layer_norm(total, scale, scale, 1e-5)
    return Model([op.abs(ops.layer_norm(hidden, scale, scale, 1e-5) if normalises_before else hidden)], [x])


def types(graph: Model, precision: str) -> tuple[str, dict[str, list[str]]]:
    """What the processor computes in, and the types of all norms and of all sums of `model`, in order of the layers."""
    adapt(graph, precision, as_convolutions=False)
    compiled = core().compile_model(graph, "CPU", compile_properties(precision))
    found = dict[str, list[str]](norm=[], sum=[])
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {name: node.get_rt_info()[name].astype(str) for name in ("layerType", "outputPrecisions")}
        kind = "norm" if facts["layerType"] == "MVN" else node.get_friendly_name().split()[0]
        if kind in found and facts["layerType"] != "Reorder":
            found[kind].append(facts["outputPrecisions"])
    return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), found


def test_all_norms_but_the_last_are_in_bf16_with_the_sums_before_them() -> None:
    narrow, found = types(model(normalises_before=False), "bf16")
    assert found == {"norm": [narrow, narrow, "f32"], "sum": [narrow, narrow, "f32"]}


def test_sums_that_are_the_next_residual_stay_in_f32() -> None:
    narrow, found = types(model(normalises_before=True), "bf16")
    assert found == {"norm": [narrow, narrow, narrow, "f32"], "sum": ["f32"] * 3}


def test_in_f32_everything_stays_in_f32() -> None:
    assert types(model(normalises_before=False), "f32") == ("f32", {"norm": ["f32"] * 3, "sum": ["f32"] * 3})
