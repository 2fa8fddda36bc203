"""The parser gives requests one at a time and complete, however their bytes are split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.http.limits import MAX_HEAD_BYTES, MAX_HEADERS
from bei_core.http.server.parser import HttpError, RequestParser
from tests import corpus

REQUESTS = [
    b"GET /a?b=c HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n\r\n\r\n\r\n\r\nbody",
    b"POST /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n1;a=b\r\nx\r\n0\r\ntrailer: a\r\n\r\n",
    b"POST /d HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 3\r\n\r\nabc",
    b"POST /e HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\nok\r\n0\r\n\r\n",
    b"GET /f HTTP/1.1\r\nupgrade: TLS/1.2\r\nconnection: upgrade\r\n\r\n",
    b"\r\nGET /g HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
]
READ = [
    (b"/a?b=c", b""),
    (b"/b", b"\r\n\r\n\r\n\r\nbody"),
    (b"/c", b"\r\n\r\nx"),
    (b"/d", b"abc"),
    (b"/e", b"ok"),
    (b"/f", b""),
    (b"/g", b""),
]


def read(parser: RequestParser, pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The URL and the body of each request in the pieces, as a connection reads them."""
    found, body, unparsed = [], b"", b""
    for piece in pieces:
        unparsed += piece
        at = 0
        while at < len(unparsed):
            end = parser.feed(unparsed, at)
            if end == at:
                break
            at = end
            body += b"".join(parser.parts)
            if parser.has_end:
                assert parser.has_head
                found.append((parser.url, body))
                body = b""
        unparsed = unparsed[at:]
        assert len(unparsed) <= 3
    return found


def cut(content: bytes, places: list[int]) -> list[bytes]:
    places = sorted({place % len(content) for place in places})
    return [content[start:end] for start, end in zip([0, *places], [*places, len(content)], strict=True)]


@given(
    st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=6),
    st.lists(st.integers(0, 10_000), max_size=30),
)
def test_requests_are_read_whole_wherever_they_are_cut(order: list[int], places: list[int]) -> None:
    content = b"".join(REQUESTS[index] for index in order)
    assert read(RequestParser(), cut(content, places)) == [READ[index] for index in order]


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_a_feed_never_goes_beyond_the_end_of_a_request(index: int) -> None:
    """So the next request is not parsed before this one is answered."""
    parser, content = RequestParser(), REQUESTS[index] + b"garbage"
    at = 0
    while not parser.has_end:
        at = parser.feed(content, at)
    assert at == len(REQUESTS[index])
    with pytest.raises(HttpError) as raised:
        parser.feed(content, at)
    assert raised.value.status == 400


def test_headers_are_kept_and_an_offer_is_not() -> None:
    parser = RequestParser()
    head = b"POST /d HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nX: Y\r\nContent-Length: 1\r\n\r\n"
    parser.feed(head, 0)
    assert parser.headers == [(b"host", b"a"), (b"connection", b"Upgrade"), (b"x", b"Y"), (b"content-length", b"1")]
    assert (parser.has_head, parser.has_end, parser.keep_alive) == (True, False, True)


@pytest.mark.parametrize(("version", "expects"), [(b"1.1", True), (b"1.0", False)])
def test_spaces_after_a_value_do_not_count(version: bytes, expects: bool) -> None:
    """And a client of HTTP/1.0 waits for no `100 Continue` (RFC 9110, 5.5 and 10.1.1)."""
    parser = RequestParser()
    parser.feed(b"POST / HTTP/%b\r\nHost: a\r\nExpect: 100-continue \t\r\nContent-Length: 1 \r\n\r\n" % version, 0)
    assert parser.headers == [(b"host", b"a"), (b"expect", b"100-continue"), (b"content-length", b"1")]
    assert parser.expects_continue is expects


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1])
@pytest.mark.parametrize("offer", [b"", b"upgrade: h2c\r\nconnection: upgrade\r\n"], ids=["plain", "offer"])
@pytest.mark.parametrize("step", [1000, 100_000])
def test_a_head_has_a_largest_size(size: int, offer: bytes, step: int) -> None:
    head = b"GET / HTTP/1.1\r\n" + offer + b"a: "
    head += b"b" * (size - len(head) - 4) + b"\r\n\r\n"
    pieces = [head[at : at + step] for at in range(0, size, step)]
    if size <= MAX_HEAD_BYTES:
        assert read(RequestParser(), pieces) == [(b"/", b"")]
    else:
        with pytest.raises(HttpError, match="65536 bytes"):
            read(RequestParser(), pieces)


@pytest.mark.parametrize("num_headers", [MAX_HEADERS, MAX_HEADERS + 1])
def test_a_head_has_a_largest_number_of_headers(num_headers: int) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * num_headers + b"\r\n"
    if num_headers <= MAX_HEADERS:
        assert read(RequestParser(), [head]) == [(b"/", b"")]
    else:
        with pytest.raises(HttpError, match="256 headers"):
            read(RequestParser(), [head])


def test_small_chunks_are_no_framing_without_end() -> None:
    chunks = b"1\r\nx\r\n" * 50_000
    content = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    assert read(RequestParser(), [content]) == [(b"/", b"x" * 50_000)]


@corpus.kept(corpus.REQUESTS)
def test_a_kept_request_is_read_in_single_bytes_as_in_one_piece(content: bytes) -> None:
    def outcome(pieces: list[bytes]) -> object:
        try:
            return read(RequestParser(), pieces)
        except HttpError as error:
            return error.status

    assert outcome([content]) == outcome([bytes([byte]) for byte in content])


@pytest.mark.parametrize("head", [b"HTTP/1.0\r\ntransfer-encoding: chunked", b"HTTP/2.0", b"HTTP/0.9"])
def test_a_version_that_has_no_such_framing_is_a_fault(head: bytes) -> None:
    """A proxy of HTTP/1.0 does not know chunks, and would take a part of the body for the next request."""
    parser = RequestParser()
    read(parser, [b"POST /a " + head + b"\r\nhost: a\r\n\r\n"])
    assert parser.fault
