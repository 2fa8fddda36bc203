"""Attacks: requests that are cheap for a client and could be expensive for the server, with their required status."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import NamedTuple

GZIP = ("content-encoding: gzip",)


class Attack(NamedTuple):
    """One request. `body` is made when it is needed, as some are large."""

    name: str
    path: str
    body: Callable[[], bytes]
    statuses: tuple[int, ...]  # those that it may get
    limit: str = ""  # a part of the error, which names the limit
    headers: tuple[str, ...] = ()
    max_growth_mb: int = 200  # of the server's memory, at most, until the reply


def dumped(**fields: object) -> Callable[[], bytes]:
    return lambda: json.dumps(fields).encode()


def repeated(start: str, item: str, count: int, end: str) -> Callable[[], bytes]:
    """A function that returns a body: `start`, `count` + 1 items separated by commas, and `end`."""
    return lambda: (start + (item + ",") * count + item + end).encode()


def squeezed(start: str, unit: str, count: int, end: str) -> Callable[[], bytes]:
    return lambda: gzip.compress((start + unit * count + end).encode(), 9)


# What any model that gives vectors is asked.
ATTACKS = (
    Attack(
        "/tokenize of 8 MB `a `", "/tokenize", lambda: b'{"inputs":"' + b"a " * 4_000_000 + b'"}', (413, 422), "4194304"
    ),
    Attack(
        "/tokenize of 1 MB `a `",
        "/tokenize",
        lambda: b'{"inputs":"' + b"a " * 500_000 + b'"}',
        (422,),
        "131072",
    ),
    Attack(
        "/tokenize of 10 texts of 100 kB",
        "/tokenize",
        dumped(inputs=["a " * 49_000] * 10),
        (200, 429),
    ),
    Attack(
        "/decode of 10 M empty lists", "/decode", repeated('{"ids":[', "[]", 10_000_000, "]}"), (413,), "65536 lists"
    ),
    Attack("/decode of 1 M ids", "/decode", repeated('{"ids":[', "1012", 1_000_000, "]}"), (422,), "131072"),
    Attack("/decode of 8 lists of 130,000 ids", "/decode", dumped(ids=[[1012] * 130_000] * 8), (200,)),
    Attack("/detokenize of 1 M ids", "/detokenize", repeated('{"tokens":[', "1012", 1_000_000, "]}"), (422,), "131072"),
    Attack("/detokenize of 130,000 ids", "/detokenize", dumped(tokens=[1012] * 130_000), (200,)),
    Attack(
        "10 M empty strings, gzip",
        "/embed",
        squeezed('{"inputs":[""', ',""', 10_000_000, "]}"),
        (413,),
        "1200000",
        GZIP,
    ),
    Attack(
        "1 M empty strings",
        "/embed",
        repeated('{"inputs":[', '""', 1_000_000, "]}"),
        (422,),
        "batch size",
    ),
    Attack(
        "2 M unknown fields",
        "/embed",
        repeated("{", '"f":1', 2_000_000, ',"inputs":"a"}'),
        (413,),
        "1200000",
    ),
    Attack(
        "32 MB that one emoji makes 128 MB",
        "/embed",
        dumped(inputs=["a" * 3_900_000 + "😀"] * 8),
        (200,),
        max_growth_mb=300,
    ),
    Attack(
        "/vertex of 1,024 texts of 4,000 characters",
        "/vertex",
        dumped(instances=[{"inputs": "ab " * 1333}] * 1024),
        (200, 429),
    ),
    Attack(
        "/vertex of 1,024 texts with options of their own",
        "/vertex",
        dumped(instances=[{"inputs": "ab " * 1333, "max_tokens_per_doc": number + 1} for number in range(1024)]),
        (200, 429),
    ),
    Attack(
        "30 kB of gzip that are 32 MB",
        "/embed",
        squeezed('{"inputs":"', "a", 31_900_000, '"}'),
        (413,),
        "4194304",
        GZIP,
    ),
    Attack("512 texts of 62,000 `!`", "/embed", dumped(inputs=["!" * 62_000] * 512), (200,)),
    Attack(
        "a text of 240,000 tokens in chunks",
        "/embed",
        dumped(inputs="a " * 240_000, chunk=True),
        (200, 429),
        max_growth_mb=300,
    ),
    Attack(
        "/embed_all of 1,024 long texts", "/embed_all", dumped(inputs=["long " * 300] * 1024), (422,), "max_reply_bytes"
    ),
    Attack(
        "4 MB of backslashes",
        "/embed",
        lambda: b'{"inputs":["' + b"\\\\" * 2_000_000 + b'"]}',
        (200, 422),
    ),
    Attack(
        "lists in lists, a million",
        "/embed",
        lambda: b'{"inputs":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        (413,),
        "65536 lists",
    ),
    Attack("60,000 lists of ids", "/embed", repeated('{"inputs":[', "[1012]", 59_999, "]}"), (422,), "batch size"),
    Attack("1,024 lists of 1,000 ids", "/embed", dumped(inputs=[[1012] * 1000] * 1024), (200, 429)),
)
