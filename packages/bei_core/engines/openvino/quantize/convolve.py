"""int8 products as convolutions of 1 x 1, for processors without VNNI.

There OpenVINO multiplies matrices of int8 no quicker than of f32 (oneDNN's `jit_gemm_I8`), but convolves int8 twice as
quickly (`jit_avx2_1x1_I8`). A product of tokens with weights is a convolution over an image as high as there are
tokens, whose channels are turned to the front and back (docs/decisions/010-int8.md).
"""

from __future__ import annotations

from collections.abc import Callable

from openvino import Model, Node, Output, Type
from openvino import opset15 as op

from bei_core.engines.openvino import ops

# What the plugin fuses into a convolution, besides Gelu: with a constant of one element or one a channel, or without.
_WITH_CONSTANT: dict[str, Callable[[Node, Node], Node]] = {"Add": op.add, "Multiply": op.multiply}
_ALONE: dict[str, Callable[[Node], Node]] = {"Relu": op.relu, "Sigmoid": op.sigmoid, "Tanh": op.tanh, "Swish": op.swish}


def convolve(model: Model) -> None:
    """Makes convolutions of all products of quantised activations with int8 weights; the outputs stay what they are."""
    images: dict[tuple[int, int], tuple[Node, Output]] = {}  # by the activation; with what has the sizes of its rows
    for product in [node for node in model.get_ordered_ops() if _is_int8(node)]:
        source = product.input_value(0)
        if _key(source) not in images:
            images[_key(source)] = _image(source), source
        image, like = images[_key(source)]
        last, y = _with_what_follows(product, _convolution(product, image))
        targets = last.output(0).get_target_inputs()
        if any(_is_int8(target.get_node()) for target in targets):
            images[_key(last.output(0))] = y, like  # the next product takes it as it is
        else:
            rows = _rows(y, like)
            for target in targets:
                target.replace_source_output(rows.output(0))


def _is_int8(node: Node) -> bool:
    """Whether it is a product of a quantised activation with int8 weights, as `quantize` leaves them."""
    if node.get_type_name() != "MatMul" or node.input_value(0).get_node().get_type_name() != "FakeQuantize":
        return False
    scaled = node.input_value(1).get_node()
    return bool(scaled.get_type_name() == "Multiply" and scaled.input_value(0).get_node().get_type_name() == "Convert")


def _key(x: Output) -> tuple[int, int]:
    return x.get_node().get_instance_id(), x.get_index()


def _image(x: Output) -> Node:
    """[..., K] to [1, K, T, 1]."""
    width = x.get_partial_shape()[-1].get_length()
    return op.transpose(op.reshape(x, ops.ints(1, -1, 1, width), False), ops.ints(0, 3, 1, 2))


def _rows(y: Node, like: Output) -> Node:
    """[1, N, T, 1] to [..., N], with the sizes before the last of `like`."""
    width = y.get_output_partial_shape(0)[1].get_length()
    # The one order of axes that the plugin turns by a kernel made for it.
    turned = op.transpose(op.reshape(y, ops.ints(1, width, 1, -1), False), ops.ints(0, 3, 1, 2))
    sizes = op.slice(op.shape_of(like, Type.i64), ops.ints(0), ops.ints(-1), ops.ints(1))
    return op.reshape(turned, op.concat([sizes, ops.ints(width)], 0), False)


def _convolution(product: Node, image: Node) -> Node:
    """[1, N, T, 1]."""
    scaled = product.input_value(1).get_node()
    integers = scaled.input_value(0).get_node().input_value(0).get_node().get_data()
    scale = scaled.input_value(1).get_node().get_data()
    kernel = op.convert(op.constant(integers[:, :, None, None]), Type.f32)
    weight = op.multiply(kernel, op.constant(scale.reshape(-1, 1, 1, 1)))
    return op.convolution(image, weight, [1, 1], [0, 0], [0, 0], [1, 1], name=product.get_friendly_name())


def _with_what_follows(product: Node, y: Node) -> tuple[Node, Node]:
    """The last node of those that the plugin fuses into a convolution, and the same nodes after `y`."""
    last = product
    while len(targets := list(last.output(0).get_target_inputs())) == 1:
        (target,) = targets
        node = target.get_node()
        kind = node.get_type_name()
        other = node.input_value(1 - target.get_index()).get_node() if kind in _WITH_CONSTANT else None
        if other is not None and other.get_type_name() == "Constant":
            y = _WITH_CONSTANT[kind](y, op.constant(other.get_data().reshape(1, -1, 1, 1)))
        elif kind in _ALONE:
            y = _ALONE[kind](y)
        elif kind == "Gelu":
            y = op.gelu(y, str(node.get_attributes()["approximation_mode"]).lower())
        elif kind == "FakeQuantize":
            limits = [node.input_value(index).get_node() for index in range(1, 5)]
            y = op.fake_quantize(y, *limits, node.get_attributes()["levels"])
        else:
            break
        last = node
    return last, y
