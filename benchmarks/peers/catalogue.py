"""The peers: servers and libraries, and how each is started."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.checkpoints import SHAPES
from benchmarks.peers.machine import has_bf16

OURS = "BEI"
ROUTER = "text-embeddings-router"
_FOREIGN = Path(__file__).with_name("foreign")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server, or a library that a loop calls, with one precision of its weights.

    `command` may contain {model} (the folder of the form), {file}, {port}, {bin} (of the environment), {task} (embed or
    rerank) and {pooling}.
    """

    name: str
    precision: str  # f32, bf16, f16, int8
    form: str
    command: tuple[str, ...]
    environment: str = ""  # of the script peer_envs.sh; empty: none of its own
    server: bool = True
    rerank: str = ""  # the route, for a loop any text; empty: it does not rerank
    documents: str = "documents"  # the name of the documents in a request to rerank
    encoders_only: bool = False

    @property
    def label(self) -> str:
        """Name and precision."""
        return f"{self.name} {self.precision}"

    def takes(self, model: str, rerank: bool) -> bool:
        """Whether the peer has this task for a model of this kind."""
        if SHAPES[model].kv_heads and (rerank or self.encoders_only):  # our random rerankers are encoders
            return False
        return bool(self.rerank or not rerank)


def ours(precision: str) -> Peer:
    """Our own server.

    It accepts any quality of int8, because random weights are not held to the limit of real ones. It refuses no request
    because of its wait, as no peer does: 64 clients wait for 5 s and more for a large model.
    """
    dtype = {"f32": "float32", "bf16": "bfloat16", "int8": "int8"}[precision]
    start = (sys.executable, "-m", "bei_core.cli", "serve", "--model-id", "{model}", "--port", "{port}")
    quality = ("--quality-mean-cosine", "0", "--quality-rank-correlation", "0") if precision == "int8" else ()
    return Peer(
        name=OURS,
        precision=precision,
        form="plain",
        command=(*start, "--dtype", dtype, "--max-queue-wait-s", "60", *quality),
        rerank="/rerank",
    )


def _infinity(precision: str) -> Peer:
    start = ("{bin}/infinity_emb", "v2", "--model-id", "{model}", "--url-prefix", "/v1", "--device", "cpu")
    listen = ("--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning")
    flags = {
        "f32": ("--engine", "torch", "--dtype", "float32"),
        "bf16": ("--engine", "torch", "--dtype", "bfloat16"),
        "int8": ("--engine", "optimum", "--pooling-method", "{pooling}"),
    }
    onnx = precision == "int8"
    return Peer(
        name="Infinity",
        precision=precision,
        form="onnx-int8" if onnx else "plain",
        command=(*start, *listen, *flags[precision]),
        environment="infinity",
        rerank="" if onnx else "/v1/rerank",
        encoders_only=onnx,  # its ONNX engine has no last-token pooling
    )


def _llama_cpp(precision: str, file: str) -> Peer:
    return Peer(
        name="llama.cpp",
        precision=precision,
        form="gguf",
        command=("{bin}/python", str(_FOREIGN / "llama_server.py"), f"{{model}}/{file}", "{port}", "{task}"),
        environment="llama-cpp",
        rerank="/v1/rerank",
        encoders_only=True,  # its converter knows decoders only with their own tokenizers, which are not here
    )


def _router(precision: str) -> Peer:
    start = (ROUTER, "--model-id", "{model}", "--hostname", "127.0.0.1", "--port", "{port}", "--dtype", "float32")
    return Peer(
        name="text-embeddings-inference",
        precision=precision,
        form=f"onnx-{precision}",
        command=(*start, "--max-client-batch-size", "1024", "--max-concurrent-requests", "2048"),  # counts texts
        encoders_only=True,
    )


def _loop(name: str, kind: str, precision: str, form: str) -> Peer:
    environment = "fastembed" if kind == "fastembed" else "sentence-transformers"
    return Peer(
        name=f"{name}, in process",
        precision=precision,
        form=form,
        command=("{bin}/python", str(_FOREIGN / "loop.py"), kind, "{model}", precision, "{pooling}"),
        environment=environment,
        server=False,
        rerank="predict" if kind == "torch" else "",
    )


PEERS = (
    _infinity("f32"),
    _infinity("bf16"),
    _infinity("int8"),
    _llama_cpp("f16", "f16.gguf"),
    _llama_cpp("int8", "q8_0.gguf"),
    _router("f32"),
    _router("int8"),
    _loop("sentence-transformers torch", "torch", "f32", "plain"),
    _loop("sentence-transformers ONNX", "onnx", "int8", "onnx-int8"),
    _loop("sentence-transformers OpenVINO", "openvino", "int8", "openvino-int8"),
    _loop("fastembed", "fastembed", "f32", "onnx-f32"),
    _loop("fastembed", "fastembed", "int8", "onnx-int8"),
)


def why_missing(peer: Peer, environments: Path) -> str:
    """What is missing, and the command that brings it if there is one; empty if the peer can be started."""
    if peer.precision == "bf16" and not has_bf16():
        return "this processor has no instructions for bf16"
    if not peer.environment:
        return "" if shutil.which(peer.command[0]) else f"there is no `{peer.command[0]}` on the PATH"
    folder = environments / f".venv-peer-{peer.environment}"
    if (folder / "bin" / "python").exists() and not (folder / "unavailable").exists():
        return ""
    return f"its environment is missing; run `scripts/peer_envs.sh {peer.environment}`"


def chosen(names: str) -> list[Peer]:
    """The peers whose labels contain one of the comma-separated texts, in any case; `all` for all of them."""
    wanted = [name.strip().lower() for name in names.split(",")]
    return [peer for peer in PEERS if "all" in wanted or any(name in peer.label.lower() for name in wanted)]


def fill(peer: Peer, model: str, folder: Path, environments: Path, port: int, rerank: bool) -> list[str]:
    """The command of a peer with all values filled in."""
    values = {
        "model": str(folder),
        "port": port,
        "bin": str(environments / f".venv-peer-{peer.environment}" / "bin"),
        "task": "rerank" if rerank else "embed",
        "pooling": SHAPES[model].pooling,
    }
    return [part.format(**values) for part in peer.command]
