"""Formats of replies by the request's headers, and compressed request bodies."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.errors import MalformedBodyError, PayloadTooLargeError, UnknownCodingError
from bei_core.http.app import App
from bei_core.http.codings import compressed, inflated
from bei_core.http.msgpack import packed
from bei_core.http.replies import JSON, MSGPACK, wanted
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from tests.fakes import SAFETY_S, FakeEngine
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}
UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "zstd": zstd.decompress}
BODY = b'{"inputs": "' + b"a" * 10_000 + b'"}'

codings = pytest.mark.parametrize("coding", ["gzip", "zstd"])


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends no accept headers of its own."""
    spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    opened = Opened(FakeEngine(max_seq_len=48), spec, FOLDER / "tokenizer.json", manifest)
    service = Service(opened, Settings.load({"model_id": "owner/name", "payload_limit": 20_000}, {}))
    service.start()
    transport = httpx.ASGITransport(App(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://a", timeout=SAFETY_S) as client:
        for name in ("accept", "accept-encoding"):
            del client.headers[name]
        yield client
    service.close(SAFETY_S)


async def raw(http: httpx.AsyncClient, method: str, path: str, **request: Any) -> tuple[httpx.Response, bytes]:  # noqa: ANN401
    """A reply and its bytes as they were sent."""
    async with http.stream(method, path, **request) as reply:
        return reply, b"".join([part async for part in reply.aiter_raw()])


# --- What a caller asks for


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("text/html, application/*;q=0.8", JSON),
        ("application/msgpack", MSGPACK),
        ("application/x-msgpack", MSGPACK),
        ("Application/MsgPack; q=0.5", MSGPACK),
        ("application/msgpack;q=0.5, application/json;q=0.4", MSGPACK),
        ("application/msgpack;q=0.5, application/json", JSON),
        ("application/msgpack;q=0.5, */*", JSON),
        ("application/msgpack, */*", MSGPACK),
        ("application/json;q=0.1, */*;q=0.9, application/msgpack;q=0.5", MSGPACK),
        ("application/msgpack;q=0", JSON),
        ("application/msgpack;q=many", JSON),
        ("application/msgpack;q=nan", JSON),
        (", ,;", JSON),
    ],
)
def test_msgpack_is_for_those_who_name_it(accept: str, media_type: str) -> None:
    assert wanted([(b"accept", accept.encode())]).media_type == media_type
    halves = accept.split(",", 1)
    assert wanted([(b"accept", half.encode()) for half in halves]).media_type == media_type


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("*", None),
        ("identity", None),
        ("br", None),
        ("gzip, deflate", None),  # httpx, requests, aiohttp, openai: clients send it on their own
        ("gzip, deflate, br", None),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, zstd;q=0", None),
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("GZIP;q=0.1", "gzip"),
        ("gzip, zstd", "zstd"),
        ("gzip, zstd;q=0.9", "gzip"),
        ("gzip, zstd;q=0", "gzip"),
        ("gzip;q=0, zstd;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("gzip, identity;q=0.5", "gzip"),
        ("gzip;q=0.000", None),
    ],
)
def test_a_reply_is_compressed_only_for_clients_that_accept_it(accepted: str, coding: str | None) -> None:
    assert wanted([(b"host", b"a"), (b"accept-encoding", accepted.encode())]).coding == coding


@pytest.mark.parametrize(("num_commas", "media_type"), [(1000, MSGPACK), (60_000, JSON)])
def test_only_the_begin_of_a_long_header_is_read(num_commas: int, media_type: str) -> None:
    """60 kB of commas held up the event loop for 28 ms, also without a key."""
    assert wanted([(b"accept", b"," * num_commas + MSGPACK.encode())]).media_type == media_type


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_in_accept_headers_give_a_known_format(accept: bytes, accept_encoding: bytes) -> None:
    found = wanted([(b"accept", accept), (b"accept-encoding", accept_encoding)])
    assert found.media_type in {JSON, MSGPACK}
    assert found.coding in {None, "gzip", "zstd"}


# --- msgpack


@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, min_side=0, max_side=40)))
def test_an_array_is_a_list_of_its_numbers(array: Any) -> None:  # noqa: ANN401
    found = np.array(msgspec.msgpack.decode(packed({"rows": [array, "x"]}))["rows"][0], np.float32)
    assert np.array_equal(found.reshape(array.shape), array, equal_nan=True)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 65_535, 65_536])
def test_lists_of_every_length(length: int) -> None:
    array = np.arange(length, dtype=np.float32)
    assert msgspec.msgpack.decode(packed(array)) == array.tolist()
    assert msgspec.msgpack.decode(packed(array[::2])) == array[::2].tolist()


def test_other_numbers_of_numpy() -> None:
    value = {"ids": np.arange(3), "one": np.int64(4), "score": np.float32(0.5), "halves": np.zeros(2, np.float16)}
    assert msgspec.msgpack.decode(packed(value)) == {"ids": [0, 1, 2], "one": 4, "score": 0.5, "halves": [0.0, 0.0]}


def test_packing_an_unknown_type_is_a_bug() -> None:
    with pytest.raises(TypeError, match="this is a bug"):
        packed({"a": object()})


# --- Replies


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": ["a", "b"]}),
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}),
        ("/tokenize", {"inputs": "some text"}),
    ],
)
async def test_msgpack_and_json_have_the_same_content(
    http: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    plain = await http.post(path, json=body)
    in_msgpack = await http.post(path, json=body, headers={"accept": "application/msgpack"})
    assert (plain.headers["content-type"], in_msgpack.headers["content-type"]) == (JSON, MSGPACK)
    assert "vary" not in plain.headers
    assert in_msgpack.headers["vary"] == "accept, accept-encoding"
    assert int(in_msgpack.headers["content-length"]) == len(in_msgpack.content)
    assert ("x-compute-type" in plain.headers) == ("x-compute-type" in in_msgpack.headers)
    assert _as_f32(msgspec.msgpack.decode(in_msgpack.content)) == _as_f32(plain.json())


def _as_f32(value: Any) -> Any:  # noqa: ANN401
    """JSON has the shortest digits that are the same f32."""
    if isinstance(value, dict):
        return {name: _as_f32(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_f32(item) for item in value]
    return np.float32(value) if isinstance(value, float) else value


@codings
async def test_a_large_reply_is_compressed(http: httpx.AsyncClient, coding: str) -> None:
    for path, method, body in (("/embed", "POST", {"inputs": ["a"] * 64}), ("/openapi.json", "GET", None)):
        plain, sent = await raw(http, method, path, json=body)
        assert "content-encoding" not in plain.headers
        reply, packed = await raw(http, method, path, json=body, headers={"accept-encoding": coding})
        assert reply.headers["content-encoding"] == coding
        assert reply.headers["vary"] == "accept, accept-encoding"
        assert int(reply.headers["content-length"]) == len(packed) < len(sent)
        assert UNPACK[coding](packed) == sent


async def test_a_packed_reply_may_be_compressed_too(http: httpx.AsyncClient) -> None:
    headers = {"accept": MSGPACK, "accept-encoding": "zstd"}
    reply, sent = await raw(http, "POST", "/embed", json={"inputs": ["a"] * 64}, headers=headers)
    assert (reply.headers["content-type"], reply.headers["content-encoding"]) == (MSGPACK, "zstd")
    assert len(msgspec.msgpack.decode(zstd.decompress(sent))) == 64


@codings
async def test_a_small_reply_and_an_error_are_sent_as_they_are(http: httpx.AsyncClient, coding: str) -> None:
    headers = {"accept": MSGPACK, "accept-encoding": coding}
    small, _ = await raw(http, "POST", "/embed", json={"inputs": "a"}, headers={"accept-encoding": coding})
    assert "content-encoding" not in small.headers
    refused, sent = await raw(http, "POST", "/embed", json={"inputs": [{"x": "y" * 3000}]}, headers=headers)
    assert (refused.status_code, refused.headers["content-type"]) == (422, JSON)
    assert "content-encoding" not in refused.headers
    assert msgspec.json.decode(sent)["error_type"] == "Validation"


@pytest.mark.parametrize(("coding", "limit"), [("gzip", 65_536), ("zstd", 262_144)])
async def test_only_a_large_body_goes_to_a_thread(monkeypatch: pytest.MonkeyPatch, coding: str, limit: int) -> None:
    where: list[bool] = []

    def compress(body: bytes, coding: str) -> bytes:
        where.append(threading.current_thread() is threading.main_thread())
        return b""

    monkeypatch.setattr("bei_core.http.codings._compress", compress)
    assert await compressed(b"a" * 1024, coding) is None
    for size in (1025, limit, limit + 1):
        await compressed(b"a" * size, coding)
    assert where == [True, True, False]


# --- Compressed bodies in


@codings
async def test_a_compressed_body_is_read(http: httpx.AsyncClient, coding: str) -> None:
    for named in (coding, f" {coding.upper()} "):
        reply = await http.post("/embed", content=PACK[coding](BODY), headers={"content-encoding": named})
        assert reply.status_code == 200
        assert reply.json() == (await http.post("/embed", content=BODY)).json()
    by_fields = await http.post("/", content=PACK[coding](BODY), headers={"content-encoding": coding})
    assert by_fields.status_code == 200


async def test_x_gzip_is_gzip(http: httpx.AsyncClient) -> None:
    reply = await http.post("/embed", content=gzip.compress(BODY), headers={"content-encoding": "x-gzip"})
    assert reply.status_code == 200


async def test_the_coding_identity_means_no_coding(http: httpx.AsyncClient) -> None:
    for coding in ("identity", ""):
        assert (await http.post("/embed", content=BODY, headers={"content-encoding": coding})).status_code == 200


@codings
async def test_the_body_limit_counts_decompressed_bytes(http: httpx.AsyncClient, coding: str) -> None:
    body = PACK[coding](b'{"inputs": "' + b"a" * 20_000 + b'"}')
    assert len(body) < 20_000
    for path in ("/embed", "/"):
        reply = await http.post(path, content=body, headers={"content-encoding": coding})
        assert reply.status_code == 413


@codings
@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_the_limit_is_exact(coding: str, size: int) -> None:
    body = PACK[coding](b"a" * size)
    assert await inflated(body, coding, size, {}) == b"a" * size
    if size:
        with pytest.raises(PayloadTooLargeError):
            await inflated(body, coding, size - 1, {})


@codings
@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-3], lambda b: b + b, lambda b: b"x" + b, lambda b: b"", lambda b: b[9:]]
)
async def test_a_damaged_compressed_body_is_a_400(http: httpx.AsyncClient, coding: str, spoil: Any) -> None:  # noqa: ANN401
    body = spoil(PACK[coding](BODY))
    reply = await http.post("/embed", content=body, headers={"content-encoding": coding})
    assert (reply.status_code, coding in reply.text) == (400, True)
    with pytest.raises(MalformedBodyError):
        await inflated(body, coding, 1_000_000, {})


async def test_a_window_larger_than_the_webs_is_refused() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    body = packer.compress(b"a" * 10_000_000) + packer.flush()
    with pytest.raises(MalformedBodyError):
        await inflated(body, "zstd", 100_000_000, {})


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, zstd"])
async def test_an_unknown_coding_is_refused_with_the_known_ones(http: httpx.AsyncClient, coding: str) -> None:
    reply = await http.post("/embed", content=zlib.compress(BODY), headers={"content-encoding": coding})
    assert reply.status_code == 415
    assert "zstd, gzip, identity" in reply.json()["error"]
    with pytest.raises(UnknownCodingError) as refusal:
        await inflated(b"", coding, 1, {})
    assert refusal.value.param == "content-encoding"
