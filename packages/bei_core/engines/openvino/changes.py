"""The changes of a graph after it is read, which depend on the processor and on the precision of the computation."""

from __future__ import annotations

from openvino import Model

from bei_core.engines.openvino.quantize.convolution import matmuls_to_convolutions
from bei_core.engines.openvino.residuals import keep_only_last_sum_wide
from bei_core.engines.openvino.stored import keep_weights_narrow


def change_for(graph: Model, precision: str, *, has_convolutions: bool) -> None:
    """Changes a graph in place for the computation in `precision`, "f32" or "bf16".

    With `has_convolutions`, linear layers in int8 become convolutions.
    """
    if has_convolutions:
        matmuls_to_convolutions(graph)
    keep_weights_narrow(graph, precision)
    if precision == "bf16":
        keep_only_last_sum_wide(graph)
