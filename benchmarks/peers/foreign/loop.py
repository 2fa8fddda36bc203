"""Calls a library in a loop, without a server, in the library's own environment.

    loop.py torch|onnx|openvino|fastembed MODEL PRECISION POOLING

Each line of the input is {"calls": [[text, ...], ...], "rerank": false, "answers": false}: one call for each list,
which begins with the query if `rerank`. The answer is one line of JSON, with the vectors or scores of the first call if
`answers`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], Any]

_BATCH = 64  # texts that the library computes together


def sentence_encoder(backend: str, model: str, precision: str) -> Encode:
    """sentence-transformers' `encode`."""
    from sentence_transformers import SentenceTransformer

    files = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model_qint8_quantized.xml"}
    how = {"file_name": files[backend]} if backend in files else {"torch_dtype": _torch_dtype(precision)}
    encoder = SentenceTransformer(model, backend=backend, device="cpu", model_kwargs=how)
    return lambda texts: encoder.encode(texts, batch_size=_BATCH)


def cross_encoder(model: str, precision: str) -> Encode:
    """sentence-transformers' `predict` of a query, which is the first text, with each document; one row of scores."""
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(model, device="cpu", model_kwargs={"torch_dtype": _torch_dtype(precision)})
    return lambda texts: encoder.predict([(texts[0], text) for text in texts[1:]], batch_size=_BATCH)[None]


def _torch_dtype(precision: str) -> str:
    return {"f32": "float32", "bf16": "bfloat16"}[precision]


def fastembed_encoder(model: str, pooling: str) -> Encode:
    """Run fastembed's `embed`, with the ONNX file of the folder."""
    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    kinds = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS, "last": PoolingType.LAST_TOKEN}
    size = json.loads(Path(model, "config.json").read_text())["hidden_size"]
    source = ModelSource(hf="none/none")
    TextEmbedding.add_custom_model("bench", kinds[pooling], normalization=True, sources=source, dim=size)
    encoder = TextEmbedding("bench", specific_model_path=model)
    return lambda texts: np.array(list(encoder.embed(texts, batch_size=_BATCH)))


def run(encode: Encode, calls: list[list[str]]) -> dict[str, Any]:
    """Wall and CPU seconds of all calls, milliseconds of each, and the resident memory afterwards."""
    cpu, wall, took = time.process_time(), time.perf_counter(), []
    for texts in calls:
        since = time.perf_counter()
        encode(texts)
        took.append((time.perf_counter() - since) * 1e3)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"wall_s": wall, "cpu_s": cpu, "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6, "took_ms": took}


def main() -> None:
    """Answers the jobs of the standard input. The model is loaded for the first one."""
    kind, model, precision, pooling = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to the standard output
    encode: Encode | None = None
    for line in sys.stdin:
        job = json.loads(line)
        if encode is None and job["rerank"]:
            encode = cross_encoder(model, precision)
        elif encode is None and kind == "fastembed":
            encode = fastembed_encoder(model, pooling)
        elif encode is None:
            encode = sentence_encoder(kind, model, precision)
        found = {"answers": encode(job["calls"][0]).tolist()} if job["answers"] else run(encode, job["calls"])
        print(json.dumps(found), file=replies, flush=True)


if __name__ == "__main__":
    main()
