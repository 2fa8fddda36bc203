"""Which requests are refused because their head equals that of a refused one."""

from __future__ import annotations

import math

import pytest

from bei_core.errors import OverloadedError
from bei_core.http.replies import Refusal
from bei_core.http.server.refused_heads import RefusedHeads

HEAD = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nAuthorization: Bearer k\r\n\r\n"


def refusal(until: float = math.inf, renewed: Refusal | None = None) -> Refusal:
    return Refusal(OverloadedError("busy", cause="queue_wait"), b"", b"", until, lambda error: None, lambda: renewed)


def request(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


@pytest.mark.parametrize("keep_alive", [True, False])
def test_an_equal_head_is_found_whatever_the_length_of_the_body(keep_alive: bool) -> None:
    heads, known = RefusedHeads(), refusal()
    heads.add(HEAD % 2, known, keep_alive=keep_alive)
    for size in (0, 1, 2, 10, 100_000):
        found = heads.find(request(b"x" * size))
        assert found is not None
        assert found.refusal is known
        assert found.keep_alive is keep_alive


OTHERS = {
    "another path": request(b"{}", HEAD.replace(b"/embed", b"/rerank")),
    "another key": request(b"{}", HEAD.replace(b"Bearer k", b"Bearer l")),
    "another header": request(b"{}", HEAD.replace(b"\r\n\r\n", b"\r\nX-Priority: high\r\n\r\n")),
    "chunked": request(b"{}", HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked\r\nA: %d")),
    "part of a head": request(b"")[:-1],
    "part of a body": request(b"{}")[:-1],
    "more than a request": request(b"{}") + b"P",
    "two requests": request(b"{}") * 2,
    "no length": HEAD.replace(b"%d", b""),
    "no number": HEAD.replace(b"%d", b"-2") + b"{}",
    "a number of 5000 digits": HEAD.replace(b"%d", b"0" * 4999 + b"2") + b"{}",
    "nothing": b"",
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_any_other_data_is_parsed(data: bytes) -> None:
    heads = RefusedHeads()
    heads.add(HEAD % 2, refusal(), keep_alive=True)
    assert heads.find(data) is None


def test_a_refusal_counts_until_its_time_and_the_newest_heads_are_kept() -> None:
    heads = RefusedHeads()
    heads.add(HEAD % 2, refusal(until=-math.inf), keep_alive=True)
    assert heads.find(request(b"{}")) is None
    names = [HEAD.replace(b"Host: a", b"Host: %d" % number) + b"" for number in range(20)]
    for name in names:
        heads.add(name.replace(b"%d", b"2"), refusal(), keep_alive=True)
    found = [heads.find(request(b"{}", name)) is not None for name in names]
    assert found == sorted(found)
    assert 0 < sum(found) < 20


@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_refusal_past_its_time_is_renewed_while_such_requests_are_refused(keep_alive: bool) -> None:
    last = refusal(until=-math.inf)
    now = refusal(until=-math.inf, renewed=last)
    heads = RefusedHeads()
    heads.add(HEAD % 2, refusal(until=-math.inf, renewed=now), keep_alive=keep_alive)
    for expected in ((now, keep_alive), (last, keep_alive), None, None):
        assert heads.find(request(b"{}")) == expected


def test_a_head_without_a_length_is_not_kept() -> None:
    heads = RefusedHeads()
    head = b"POST /embed HTTP/1.1\r\nhost: a\r\nx-content-length: 2\r\n\r\n"
    heads.add(head, refusal(), keep_alive=True)
    heads.add(b"", refusal(), keep_alive=True)
    assert heads.find(head) is None
