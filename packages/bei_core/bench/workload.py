"""Seeded workloads of real prose, and the HTTP requests that send them.

The prose is Python's documentation (texts.txt, with its licence). A workload depends on its name, size and seed only,
not on the version of Python. Its texts are all different, so a server's cache does not help.

Tokens per text, with special tokens, by the tokenizer of all-MiniLM-L6-v2 over 5,000 texts:

    tiny    mean 5.0    p50 5     p99 10    max 15    two or three words
    short   mean 10.9   p50 10    p99 23    max 33    queries, as people type them
    mixed   mean 31.0   p50 26    p99 102   max 128   sentences and parts of paragraphs
    long    mean 483    p50 482   p99 548   max 570   documents; a model of 512 positions truncates a fifth of them
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import NormalDist

import msgspec

from bei_core.errors import ConfigError

PATHS = {"openai": "/v1/embeddings", "tei": "/embed"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A distribution of text lengths: log-normal in words, clipped at both ends."""

    median: float
    sigma: float
    shortest: int
    longest: int
    query: bool = False  # lower case and without punctuation

    def num_words(self, quantile: float) -> int:
        """The number of words at a quantile (0 to 1) of the distribution."""
        words = self.median * math.exp(self.sigma * NormalDist().inv_cdf(quantile))
        return max(self.shortest, min(self.longest, round(words)))


KINDS = {
    "tiny": Kind(median=2.5, sigma=0.2, shortest=2, longest=3, query=True),
    "short": Kind(median=7, sigma=0.45, shortest=3, longest=15, query=True),
    "mixed": Kind(median=18, sigma=0.65, shortest=3, longest=76),
    "long": Kind(median=365, sigma=0.04, shortest=330, longest=400),
}


@cache
def words() -> list[str]:
    """The words of the prose, in order."""
    return files("bei_core.bench").joinpath("texts.txt").read_text(encoding="utf-8").split()


def texts(kind: str, count: int, seed: int) -> list[str]:
    """`count` different texts of a workload, always the same for a seed. Raises ConfigError for an unknown workload."""
    if kind not in KINDS:
        raise ConfigError(f"unknown workload `{kind}`, known: {', '.join(KINDS)}")
    found: dict[str, None] = {}
    for text in _passages(KINDS[kind], random.Random(f"{kind} {seed}")):  # noqa: S311, not for cryptography
        found[text] = None
        if len(found) >= count:
            break
    return list(found)


def _passages(kind: Kind, rng: random.Random) -> Iterator[str]:
    """Endless random passages of the prose. Python guarantees the same sequence of `Random.random` in all versions."""
    prose = words()
    while True:
        length = kind.num_words(max(rng.random(), 1e-9))
        start = int(rng.random() * (len(prose) - length))
        passage = prose[start : start + length]
        yield " ".join(_to_query(passage) if kind.query else passage)


def _to_query(passage: Sequence[str]) -> list[str]:
    """The words in lower case without punctuation; a word of punctuation only becomes "and", to keep the length."""
    return [word.strip(".,:;()[]“”'").lower() or "and" for word in passage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How texts are sent: the route, the form of the body, the headers."""

    host: str
    prefix: str = ""  # of the route
    shape: str = "openai"  # form of the body: openai, tei
    path: str | None = None  # None: the usual route for the shape
    batch: int = 1
    encoding_format: str = "base64"
    model: str = "bench"
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("shape", self.shape, tuple(PATHS)),
            ("encoding_format", self.encoding_format, ("base64", "float")),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} `{value}`, known: {', '.join(known)}")
        if self.batch < 1:
            raise ConfigError(f"`batch` must be at least 1, got {self.batch}")

    @property
    def route(self) -> str:
        """The path of the requests."""
        return self.prefix + (self.path or PATHS[self.shape])

    def requests(self, texts: Sequence[str]) -> list[bytes]:
        """Whole HTTP requests with `batch` texts each."""
        return [self._request(texts[at : at + self.batch]) for at in range(0, len(texts), self.batch)]

    def _request(self, texts: Sequence[str]) -> bytes:
        body = msgspec.json.encode(self._body(texts[0] if self.batch == 1 else list(texts)))
        lines = [
            f"POST {self.route} HTTP/1.1",
            f"host: {self.host}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *([f"authorization: Bearer {self.api_key}"] if self.api_key else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def _body(self, texts: str | list[str]) -> dict[str, object]:
        if self.shape == "tei":
            return {"inputs": texts, "truncate": True}
        return {"input": texts, "model": self.model, "encoding_format": self.encoding_format}
