"""The changes of a graph after it is read, which depend on the processor and on the precision of the computation."""

from __future__ import annotations

from openvino import Model

from bei_core.engines.openvino.processor import has_int8_dot_product
from bei_core.engines.openvino.quantize.convolution import matmuls_to_convolutions
from bei_core.engines.openvino.residuals import keep_only_last_sum_wide
from bei_core.engines.openvino.stored import keep_weights_narrow


def change_for(graph: Model, precision: str, *, quantised: bool) -> None:
    """Changes a graph in place for the computation in `precision`, "f32" or "bf16".

    If `quantised`, linear layers are in int8. They become convolutions on a processor without VNNI.
    """
    if quantised and not has_int8_dot_product():
        matmuls_to_convolutions(graph)
    keep_weights_narrow(graph, precision)
    if precision == "bf16":
        keep_only_last_sum_wide(graph)
