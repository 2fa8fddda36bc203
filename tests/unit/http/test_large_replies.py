"""Large replies are written in pieces, with the same bytes as in one call, and sent in parts."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from starlette.types import Message

from bei_core.http import replies
from bei_core.http.replies import Deferred, complete, num_numbers
from bei_core.tasks import Sparse

VALUES: list[Any] = [
    np.arange(60, dtype=np.float32).reshape(3, 4, 5),
    [np.ones((3, 2), np.float32), np.ones((1, 2), np.float32), np.ones((40, 2), np.float32)],
    [],
    {},
    {"object": "list", "data": [{"index": index, "embedding": np.full(9, index, np.float32)} for index in range(9)]},
    {"predictions": [["text " * 100, "a"], [], {"nested": ["b"] * 30}]},
    [[{"index": 1, "value": 0.5}] * 30, [], [{"index": 2, "value": 1.5}]],
    np.arange(100, dtype=np.float32),
    "text" * 100,
    ["text " * 100, None, True, 1.5],
]


async def body_of(value: object, *headers: tuple[bytes, bytes]) -> bytes:
    return bytes((await complete(value, headers)).body)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("limit", [1, 8, 1000])
async def test_a_reply_in_pieces_has_the_same_bytes_as_one_call_writes(
    monkeypatch: pytest.MonkeyPatch, value: object, limit: int
) -> None:
    monkeypatch.setattr(replies, "INLINE_NUMBERS", limit)
    whole = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    assert await body_of(Deferred(0, lambda: value)) == whole
    packed = await body_of(Deferred(0, lambda: value), (b"accept", b"application/msgpack"))
    assert packed == await body_of(value, (b"accept", b"application/msgpack"))


@pytest.mark.parametrize("kind", [replies.JSON, replies.MSGPACK])
async def test_the_items_of_an_iterator_are_made_and_freed_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(replies, "_ITEMS_PER_PIECE", 10)
    alive, most = 0, 0

    class Counted(dict[str, int]):
        def __init__(self, number: int) -> None:
            nonlocal alive, most
            super().__init__(number=number)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    accept = (b"accept", kind.encode())
    lists = await body_of(Deferred(0, lambda: [map(Counted, range(count)) for count in (0, 1, 10, 95)]), accept)
    assert lists == await body_of([[{"number": i} for i in range(count)] for count in (0, 1, 10, 95)], accept)
    assert most <= 20


async def test_a_large_reply_is_sent_in_parts_that_the_client_has_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_PART", 100)
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    response = await complete(list(range(1000)), [])
    await response({"type": "http", "method": "POST"}, asyncio.Queue[Any]().get, send)
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(orjson.dumps(list(range(1000))))).encode()
    assert [len(message["body"]) for message in sent[1:-1]] == [100] * (len(sent) - 2)
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
    assert msgspec.json.decode(b"".join(message["body"] for message in sent[1:])) == list(range(1000))


def test_numbers_are_counted_in_every_result() -> None:
    assert num_numbers(np.zeros((3, 4), np.float32)) == 12
    assert num_numbers([np.zeros((3, 4), np.float32), np.zeros((1, 4), np.float32)]) == 16
    assert num_numbers([Sparse(np.arange(5), np.zeros(5, np.float32))]) == 10
    assert num_numbers([(1, 0.5), (0, 0.25)]) == 4
