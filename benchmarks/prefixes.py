"""Documents per second of one query with many documents, with the shared prefix computed once and without.

The model is a decoder of random weights, which has the sizes of Qwen2-0.5B and fewer layers. Prints JSON.

    prefixes.py [--layers 6] [--documents 100] [--prefix 90] [--tokens 60] [--dtype float32] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.openvino import graph
from bei_core.engines.openvino.engine import BATCH_TOKENS, OpenVinoEngine, precision_for
from bei_core.engines.openvino.graph import build_graph
from bei_core.models.spec import read_spec
from bei_core.serving.queue import Item, Pending
from bei_core.tasks import Tokens

_HIDDEN, _INNER, _NUM_HEADS, _NUM_KV_HEADS, _VOCAB = 896, 4864, 14, 2, 8192  # of Qwen2-0.5B, but for the vocabulary


def write_checkpoint(folder: Path, num_layers: int) -> None:
    """Write a Qwen2 of random weights, without a tokenizer."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": _NUM_HEADS,
        "num_key_value_heads": _NUM_KV_HEADS,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096,
        "vocab_size": _VOCAB,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    kv_width = _HIDDEN // _NUM_HEADS * _NUM_KV_HEADS
    shapes = {"q": _HIDDEN, "k": kv_width, "v": kv_width}
    tensors = {"embed_tokens.weight": (_VOCAB, _HIDDEN), "norm.weight": (_HIDDEN,)}
    for layer in range(num_layers):
        prefix = f"layers.{layer}."
        for name, width in shapes.items():
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = (width, _HIDDEN)
            tensors[f"{prefix}self_attn.{name}_proj.bias"] = (width,)
        tensors[f"{prefix}self_attn.o_proj.weight"] = (_HIDDEN, _HIDDEN)
        tensors[f"{prefix}mlp.gate_proj.weight"] = tensors[f"{prefix}mlp.up_proj.weight"] = (_INNER, _HIDDEN)
        tensors[f"{prefix}mlp.down_proj.weight"] = (_HIDDEN, _INNER)
        tensors[f"{prefix}input_layernorm.weight"] = (_HIDDEN,)
        tensors[f"{prefix}post_attention_layernorm.weight"] = (_HIDDEN,)
    made = {
        f"model.{name}": random.standard_normal(shape, np.float32) * 0.04
        if len(shape) > 1
        else np.ones(shape, np.float32)
        for name, shape in tensors.items()
    }
    save_file(made, folder / "model.safetensors")


def documents(count: int, prefix: int, length: int) -> list[Tokens]:
    """Documents of `length` random tokens after the same `prefix` random tokens."""
    random = np.random.default_rng(1)
    first = random.integers(0, _VOCAB, prefix)
    ids = [np.concatenate([first, random.integers(0, _VOCAB, length)]).astype(np.int32) for _ in range(count)]
    return [Tokens(each, np.zeros_like(each)) for each in ids]


def batches(tokens: Sequence[Tokens], *, shares_prefixes: bool) -> list[Batch]:
    """The batches that the server's queue forms."""
    owner = SimpleNamespace(abandoned=False)
    queue: Pending[SimpleNamespace] = Pending(BATCH_TOKENS, shares_prefixes=shares_prefixes)
    queue.put([Item(each, owner, index, 0.0) for index, each in enumerate(tokens)], 0.0)
    found = []
    while len(queue):
        found.append(Batch.pack([item.tokens for item in queue.take(BATCH_TOKENS, 0.0).items]))
    return found


def documents_per_s(engine: OpenVinoEngine, parts: Sequence[Batch]) -> float:
    """Documents per second of `forward` alone."""
    started = time.perf_counter()
    for batch in parts:
        engine.forward(batch)
    return sum(map(len, parts)) / (time.perf_counter() - started)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Documents per second of each round, in turns: with shared prefixes, and by a graph without them."""
    tokens = documents(options.documents, options.prefix, options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), options.layers)
        checkpoint = resolve(folder)
        spec, precision = read_spec(checkpoint), precision_for(options.dtype)
        sharing = OpenVinoEngine(build_graph(spec, checkpoint), spec, precision)
        with mock.patch.object(graph, "shares_prefixes", return_value=False):
            plain = OpenVinoEngine(build_graph(spec, checkpoint), spec, precision)
        engines = [
            (engine, batches(tokens, shares_prefixes=engine.info.shares_prefixes)) for engine in (sharing, plain)
        ]
        for engine, parts in engines:
            engine.forward(parts[0])
            engine.forward(parts[-1])
        rounds = [[documents_per_s(*each) for each in engines] for _ in range(options.rounds)]
        difference = np.abs(sharing.forward(engines[0][1][0]) - plain.forward(engines[0][1][0])).max()
    return {
        **vars(options),
        "precision": precision,
        "batches": [len(parts) for _, parts in engines],
        "shared_documents_per_s": [with_sharing for with_sharing, _ in rounds],
        "plain_documents_per_s": [without for _, without in rounds],
        "median_ratio": statistics.median(with_sharing / without for with_sharing, without in rounds),
        "largest_difference": float(difference),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"layers": 6, "documents": 100, "prefix": 90, "tokens": 60, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="float32")
    print(json.dumps(measure(parser.parse_args())))
