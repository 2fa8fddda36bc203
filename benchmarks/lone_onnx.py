"""A BERT encoder in onnxruntime, called in a loop: writes the ONNX graph by hand, in f32 and in int8.

Runs in an environment of its own (`lone.py` says how to make it) and prints JSON:

    lone_onnx.py write MODEL FOLDER              writes f32.onnx, int8.onnx (a scale a tensor), int8_channel.onnx
    lone_onnx.py run FILE NUM_THREADS < lines    each line is a list of token ids; prints the milliseconds of each call
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Graph:
    """Nodes and weights of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, value: Any) -> str:  # noqa: ANN401 - an array or a number
        """The name of a constant."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - of ONNX
        """The name of a node's output."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name


class Bert(Graph):
    """The encoder of a checkpoint, and the mean of its token vectors."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.config = json.loads((model / "config.json").read_text())
        self.tensors = load_file(model / "model.safetensors")

    def linear(self, x: str, name: str) -> str:
        """The linear layer: x @ weight.T + bias."""
        weight, bias = (self.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        return self.add("Add", self.add("MatMul", x, self.constant(weight.T)), self.constant(bias))

    def norm(self, x: str, name: str) -> str:
        """LayerNorm over the last axis."""
        scale, shift = (self.constant(self.tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=self.config["layer_norm_eps"])

    def embed(self) -> str:
        """[B, L, H]."""
        words, types, places = (
            self.constant(self.tensors[f"embeddings.{name}_embeddings.weight"])
            for name in ("word", "token_type", "position")
        )
        zero, one, first = (self.constant(np.array(value)) for value in (0, 1, [0]))
        length = self.add("Gather", self.add("Shape", "input_ids"), one, axis=0)
        positions = self.add("Unsqueeze", self.add("Range", zero, length, one), first)
        total = self.add("Add", self.add("Gather", words, "input_ids"), self.add("Gather", types, "token_type_ids"))
        return self.norm(self.add("Add", total, self.add("Gather", places, positions)), "embeddings.LayerNorm")

    def layer(self, x: str, mask: str, name: str) -> str:
        """[B, L, H] of [B, L, H]."""
        heads, hidden = self.config["num_attention_heads"], self.config["hidden_size"]
        apart, joined = self.constant(np.array([0, 0, heads, hidden // heads])), self.constant(np.array([0, 0, hidden]))
        query, key, value = (
            self.add(
                "Transpose",
                self.add("Reshape", self.linear(x, f"{name}.attention.self.{part}"), apart),
                perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
            )
            for part in ("query", "key", "value")
        )
        scale = self.constant(np.float32((hidden // heads) ** 0.5))
        scores = self.add("Add", self.add("Div", self.add("MatMul", query, key), scale), mask)
        attended = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        attended = self.add("Reshape", self.add("Transpose", attended, perm=[0, 2, 1, 3]), joined)
        attended = self.add("Add", self.linear(attended, f"{name}.attention.output.dense"), x)
        x = self.norm(attended, f"{name}.attention.output.LayerNorm")
        inner = self.add("Gelu", self.linear(x, f"{name}.intermediate.dense"))
        return self.norm(self.add("Add", self.linear(inner, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")

    def model(self) -> onnx.ModelProto:
        """A model of INPUTS [B, L] that gives rows [B, H]."""
        present = self.add("Cast", "attention_mask", to=TensorProto.FLOAT)
        absent = self.add("Sub", self.constant(np.float32(1)), present)
        wide = self.add("Unsqueeze", absent, self.constant(np.array([1, 2])))
        mask = self.add("Mul", wide, self.constant(np.float32(-3e38)))
        x = self.embed()
        for layer in range(self.config["num_hidden_layers"]):
            x = self.layer(x, mask, f"encoder.layer.{layer}")
        weights, tokens = self.add("Unsqueeze", present, self.constant(np.array([2]))), self.constant(np.array([1]))
        total = self.add("ReduceSum", self.add("Mul", x, weights), tokens, keepdims=0)
        rows = self.add("Div", total, self.add("ReduceSum", weights, tokens, keepdims=0))
        self.nodes.append(helper.make_node("Identity", [rows], ["rows"]))
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "L"]) for name in INPUTS]
        output = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["B", self.config["hidden_size"]])
        graph = helper.make_graph(self.nodes, "bert", inputs, [output], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def write(model: Path, folder: Path) -> None:
    """Writes the graph in three forms."""
    plain = folder / "f32.onnx"
    onnx.save(Bert(model).model(), plain)
    kinds: dict[str, dict[str, bool]] = {"int8": {}, "int8_channel": {"per_channel": True, "reduce_range": True}}
    for name, how in kinds.items():
        quantize_dynamic(
            plain, folder / f"{name}.onnx", weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"], **how
        )


def run(path: Path, num_threads: int) -> list[float]:
    """Milliseconds of each call, one text a call, each of its exact length."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    took = []
    for line in sys.stdin:
        ids = np.array([json.loads(line)], np.int64)
        started = time.perf_counter()
        session.run(["rows"], dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True)))
        took.append((time.perf_counter() - started) * 1e3)
    return took


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(json.dumps(run(Path(sys.argv[2]), int(sys.argv[3]))))
