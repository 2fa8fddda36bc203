"""llama.cpp's own HTTP server, which the package xllamacpp contains, with a model for embeddings or reranking.

    llama_server.py FILE PORT embed|rerank

It runs until it is stopped. The server itself is C++; Python only sets its options.
"""

from __future__ import annotations

import os
import signal
import sys

import xllamacpp

_SLOTS = 16  # requests that it computes together
_POSITIONS = 512  # tokens of a slot
_BATCH = 2048  # tokens of a step


def options(file: str, port: int, rank: bool) -> xllamacpp.CommonParams:
    """The server's options: one slot has room for a whole text of BERT, and a step for several of them."""
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.hostnames = file, port, ["127.0.0.1"]
    params.embedding, params.ui, params.verbosity = True, False, 1
    params.n_parallel, params.n_ctx = _SLOTS, _SLOTS * _POSITIONS
    params.n_batch = params.n_ubatch = _BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    if rank:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    return params


if __name__ == "__main__":
    server = xllamacpp.Server(options(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "rerank"))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # the server's threads have no end of their own
