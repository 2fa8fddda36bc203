"""What is asked of a peer: the same texts as HTTP requests and as calls of a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bei_core.bench.workload import Wire, texts
from benchmarks.peers.catalogue import OURS, Peer
from benchmarks.peers.checkpoints import SHAPES

_TOKENS = {"short": 11, "mixed": 31, "long": 483}  # mean, of MiniLM's tokenizer
_CONCURRENT = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts of a kind, by how many clients, and how many texts in each request."""

    name: str
    kind: str
    clients: int
    batch: int
    share: float  # requests for MiniLM, as a share of --requests
    fewest: int  # requests for a slow model
    rerank: bool = False

    def num_requests(self, model: str, requests: int) -> int:
        """Requests to measure: fewer for a model that needs more operations for a token than MiniLM."""
        speed = SHAPES["minilm"].flops_per_token / SHAPES[model].flops_per_token
        return max(self.fewest, round(requests * self.share * speed))

    def num_warmup(self, peer: Peer) -> int:
        """Requests before the measured ones. Ours compiles graphs for one client alone after 100 of its requests."""
        if self.batch > 1:
            return 1
        return _CONCURRENT if self.clients > 1 else 150 if peer.name == OURS else 20

    def flops(self, peer: Peer, model: str, requests: int) -> float:
        """FLOPs of the linear layers in all requests, the warm-up too."""
        num_texts = (self.num_requests(model, requests) + self.num_warmup(peer)) * self.batch
        return num_texts * _TOKENS[self.kind] * SHAPES[model].flops_per_token

    def describe(self) -> str:
        """The workload in words."""
        who = f"{self.clients} clients" if self.clients > 1 else "1 client"
        if self.rerank:
            return f"{who}, a query with {self.batch} documents in a request, {self.kind} texts"
        what = "1 text" if self.batch == 1 else f"{self.batch:,} texts"
        return f"{who}, {what} in a request, {self.kind} texts (mean {_TOKENS[self.kind]} tokens)"


WORKLOADS = {
    each.name: each
    for each in (
        Workload("short", "short", _CONCURRENT, 1, share=2.0, fewest=128),
        Workload("mixed", "mixed", _CONCURRENT, 1, share=1.0, fewest=128),
        Workload("long", "long", _CONCURRENT, 1, share=0.1, fewest=64),
        Workload("one-client", "mixed", 1, 1, share=0.25, fewest=40),
        Workload("1024-inputs", "mixed", 1, 1024, share=0.002, fewest=1),
        Workload("rerank", "mixed", 1, 100, share=0.01, fewest=2, rerank=True),
    )
}


def questions(workload: Workload, first: int, count: int) -> list[list[str]]:
    """The texts of each request from number `first` on, with the query before the documents for reranking."""
    given = texts(workload.kind, (first + count) * workload.batch, 0)[first * workload.batch :]
    parts = [given[at : at + workload.batch] for at in range(0, len(given), workload.batch)]
    if not workload.rerank:
        return parts
    queries = texts("short", first + count, 1)[first:]
    return [[query, *part] for query, part in zip(queries, parts, strict=True)]


def http_requests(workload: Workload, peer: Peer, host: str, asked: Sequence[Sequence[str]]) -> list[bytes]:
    """Whole HTTP requests that ask a peer's server these questions."""
    if not workload.rerank:
        wire = Wire(host=host, batch=workload.batch)
        return [request for texts_of_one in asked for request in wire.requests(texts_of_one)]
    bodies = [rerank_body(peer, each) for each in asked]
    head = f"POST {peer.rerank} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


def rerank_body(peer: Peer, asked: Sequence[str]) -> bytes:
    """The JSON of one request to rerank: the query first, then the documents."""
    return msgspec.json.encode({"model": "bench", "query": asked[0], peer.documents: list(asked[1:])})


def calls(workload: Workload, asked: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same as calls of a library: one for all texts of concurrent clients, else one for each request."""
    return [[text for each in asked for text in each]] if workload.clients > 1 else [list(each) for each in asked]
