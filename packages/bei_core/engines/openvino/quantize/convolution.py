"""int8 linear layers as 1 x 1 convolutions, for processors without VNNI.

On these, OpenVINO's int8 matmul (oneDNN's `jit_gemm_I8`) is no faster than f32, but its int8 convolution
(`jit_avx2_1x1_I8`) is twice as fast. A linear layer over tokens is a 1 x 1 convolution over an image with one token per
line. That needs a transpose before and after, because an image has its channels first (docs/decisions/010-int8.md).
"""

from __future__ import annotations

from collections.abc import Callable

from openvino import Model, Node, Output, Type
from openvino import opset15 as op

from bei_core.engines.openvino import ops

# Operations that the CPU plugin fuses into a convolution, besides Gelu and FakeQuantize. The second input of a binary
# operation is a constant with one element, or with one for each channel.
_BINARY: dict[str, Callable[[Node, Node], Node]] = {"Add": op.add, "Multiply": op.multiply}
_UNARY: dict[str, Callable[[Node], Node]] = {"Relu": op.relu, "Sigmoid": op.sigmoid, "Tanh": op.tanh, "Swish": op.swish}


def matmuls_to_convolutions(model: Model) -> None:
    """Replace the int8 matmuls of a quantised model by convolutions, in place; its outputs do not change."""
    images: dict[tuple[int, int], tuple[Node, Output]] = {}  # activation to its image and an output of the same shape
    for matmul in [node for node in model.get_ordered_ops() if _is_int8_matmul(node)]:
        source = matmul.input_value(0)
        if _key(source) not in images:
            images[_key(source)] = _to_image(source), source
        image, like = images[_key(source)]
        last, y = _with_fused_operations(matmul, _convolution(matmul, image))
        targets = last.output(0).get_target_inputs()
        if any(_is_int8_matmul(target.get_node()) for target in targets):
            images[_key(last.output(0))] = y, like  # the next convolution takes the image without a transpose
        else:
            rows = _to_rows(y, like)
            for target in targets:
                target.replace_source_output(rows.output(0))


def merge_transposes(model: Model) -> None:
    """Change the transposes after convolutions, in place, to those that the plugin merges with its order of memory.

    All shapes of the model must be fixed. For other shapes the plugin merges nothing, and the transposes of `_to_rows`
    are faster.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Transpose" and (image := _image_of(node)) is not None:
            rows = op.transpose(image, ops.ints(0, 2, 3, 1))  # [1, R * L, 1, out]: the same values in the same order
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(rows.output(0))


def _image_of(transpose: Node) -> Output | None:
    """The image [1, out, R * L, 1] that a transpose of `_to_rows` has as its source; None for another transpose."""
    reshape = transpose.input_value(0).get_node()
    if reshape.get_type_name() != "Reshape":
        return None
    image = reshape.input_value(0)
    before, after = tuple(image.get_shape()), tuple(reshape.get_output_shape(0))
    return image if len(before) == 4 and after == (1, before[1], 1, before[2]) and before[3] == 1 else None


def _is_int8_matmul(node: Node) -> bool:
    """Whether a node multiplies a quantised activation by int8 weights in the form that `quantize` gives them."""
    if node.get_type_name() != "MatMul" or node.input_value(0).get_node().get_type_name() != "FakeQuantize":
        return False
    scaled = node.input_value(1).get_node()
    return bool(scaled.get_type_name() == "Multiply" and scaled.input_value(0).get_node().get_type_name() == "Convert")


def _key(x: Output) -> tuple[int, int]:
    return x.get_node().get_instance_id(), x.get_index()


def _to_image(x: Output) -> Node:
    """[..., in] to [1, in, R * L, 1]."""
    width = x.get_partial_shape()[-1].get_length()
    return op.transpose(op.reshape(x, ops.ints(1, -1, 1, width), False), ops.ints(0, 3, 1, 2))


def _to_rows(y: Node, like: Output) -> Node:
    """[1, out, R * L, 1] to [..., out]; all sizes but the last are those of `like`."""
    width = y.get_output_partial_shape(0)[1].get_length()
    # The plugin has an optimised kernel for a transpose of exactly these axes.
    transposed = op.transpose(op.reshape(y, ops.ints(1, width, 1, -1), False), ops.ints(0, 3, 1, 2))
    sizes = op.slice(op.shape_of(like, Type.i64), ops.ints(0), ops.ints(-1), ops.ints(1))
    return op.reshape(transposed, op.concat([sizes, ops.ints(width)], 0), False)


def _convolution(matmul: Node, image: Node) -> Node:
    """[1, out, R * L, 1] of an image [1, in, R * L, 1]."""
    scaled = matmul.input_value(1).get_node()
    integers = scaled.input_value(0).get_node().input_value(0).get_node().get_data()
    scale = scaled.input_value(1).get_node().get_data()
    kernel = op.convert(op.constant(integers[:, :, None, None]), Type.f32)
    weight = op.multiply(kernel, op.constant(scale.reshape(-1, 1, 1, 1)))
    return op.convolution(image, weight, [1, 1], [0, 0], [0, 0], [1, 1], name=matmul.get_friendly_name())


def _with_fused_operations(matmul: Node, y: Node) -> tuple[Node, Node]:
    """Apply to `y` the operations after `matmul` that the plugin fuses; returns the last of them, and the result."""
    last = matmul
    while len(targets := list(last.output(0).get_target_inputs())) == 1:
        (target,) = targets
        node = target.get_node()
        kind = node.get_type_name()
        other = node.input_value(1 - target.get_index()).get_node() if kind in _BINARY else None
        if other is not None and other.get_type_name() == "Constant":
            y = _BINARY[kind](y, op.constant(other.get_data().reshape(1, -1, 1, 1)))
        elif kind in _UNARY:
            y = _UNARY[kind](y)
        elif kind == "Gelu":
            y = op.gelu(y, str(node.get_attributes()["approximation_mode"]).lower())
        elif kind == "FakeQuantize":
            limits = [node.input_value(index).get_node() for index in range(1, 5)]
            y = op.fake_quantize(y, *limits, node.get_attributes()["levels"])
        else:
            break
        last = node
    return last, y
