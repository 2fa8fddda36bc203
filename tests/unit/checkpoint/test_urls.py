"""Checkpoints in a tar behind a URL."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.errors import CheckpointError
from bei_core.storage.errors import TransientError
from tests.stores import MODEL, files_of
from tests.web import File, Web

UNWANTED = dict.fromkeys(
    ["pytorch_model.bin", "README.md", "modeling.py", "onnx/model.onnx", "other.safetensors"], b"no"
)
PATH = "/m.tar.gz"


def tar(files: Mapping[str, bytes], *members: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    """An archive of files, after members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member in members:
            archive.addfile(member)
        for name, data in files.items():
            archive.addfile(sized(name, data), io.BytesIO(data))
    return buffer.getvalue()


def sized(name: str, data: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is neither a file nor a folder."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("bei_core.storage.transfer._PAUSES_S", (0.0, 0.0))
    with Web() as server:
        yield server


def fetch(
    web: Web, root: Path, revision: str | None = None, *, secret: str | None = None, query: str = ""
) -> Checkpoint:
    return resolve(web.url(PATH) + query, revision, secret=secret, root=root)


# --- What is fetched


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:bz2", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "./", "model/", "./a/b/"])
def test_a_tar_is_fetched_and_only_what_is_needed_is_kept(web: Web, tmp_path: Path, mode: str, prefix: str) -> None:
    files = {f"{prefix}{name}": data for name, data in {**MODEL, **UNWANTED, "1_Pooling/config.json": b"{}"}.items()}
    data = tar(files, special("model", tarfile.DIRTYPE), mode=mode)
    web.files[PATH] = File(data)
    checkpoint = fetch(web, tmp_path)
    assert checkpoint.revision == hashlib.sha256(data).hexdigest() == checkpoint.folder.name
    assert files_of(checkpoint) == {*MODEL, "1_Pooling/config.json"}
    assert checkpoint.tensors().names() == ["a", "b"]
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize(
    "file",
    [
        File(tar(MODEL)),
        File(tar(MODEL), has_etag=False, modified="Wed, 21 Oct 2015 07:28:00 GMT"),
    ],
)
def test_an_unchanged_archive_is_checked_and_not_fetched_again(
    web: Web, tmp_path: Path, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    web.files[PATH] = file
    first = fetch(web, tmp_path, query="?signature=one")
    with caplog.at_level(logging.INFO):
        assert fetch(web, tmp_path, query="?signature=two") == first
    assert len(web.requests) == 2
    assert "fetching" not in caplog.text

    file.data = tar({**MODEL, "config.json": b'{"other": 1}'})
    second = fetch(web, tmp_path)
    assert second.read_json("config.json") == {"other": 1}
    asked = len(web.requests)
    assert fetch(web, tmp_path, first.revision) == first  # pinned, and there
    assert len(web.requests) == asked


def test_a_server_that_says_nothing_of_the_content_is_read_each_time(
    web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web.files[PATH] = File(tar(MODEL), has_etag=False, sized=False)
    first = fetch(web, tmp_path)
    with caplog.at_level(logging.INFO):
        assert fetch(web, tmp_path) == first
    assert "size unknown" in caplog.text


def test_a_pin_is_the_digest_of_the_archive(web: Web, tmp_path: Path) -> None:
    data = tar(MODEL)
    digest = hashlib.sha256(data).hexdigest()
    web.files[PATH] = File(data)
    assert fetch(web, tmp_path, digest).revision == digest
    with pytest.raises(CheckpointError, match=f"has SHA-256 {digest}, not {'0' * 64}: changed or tampered with"):
        fetch(web, tmp_path, "0" * 64)
    with pytest.raises(CheckpointError, match="a revision is the SHA-256 of the archive, 64 hex digits, not main"):
        fetch(web, tmp_path, "main")


# --- What goes wrong on the way


def test_a_connection_that_breaks_is_taken_up_again(web: Web, tmp_path: Path) -> None:
    data = tar(MODEL)
    web.files[PATH] = File(data, cuts=[10, 20, 0, 40])
    assert fetch(web, tmp_path).revision == hashlib.sha256(data).hexdigest()
    assert [asked.headers.get("Range") for asked in web.requests] == [None, *(f"bytes={n}-" for n in (10, 30, 30, 70))]
    assert sum(asked.sent for asked in web.requests) == len(data)


def test_a_server_without_ranges_is_read_from_the_start(web: Web, tmp_path: Path) -> None:
    data = tar(MODEL)
    web.files[PATH] = File(data, cuts=[10], ranges=False)
    assert fetch(web, tmp_path).revision == hashlib.sha256(data).hexdigest()


def test_a_server_that_always_breaks_off_is_retried_a_few_times(web: Web, tmp_path: Path) -> None:
    data = tar(MODEL)
    web.files[PATH] = File(data, cuts=[50] * 40, ranges=False)  # each reply brings what the first one brought
    with pytest.raises(CheckpointError, match=f"truncated: 50 bytes of {len(data)} came"):
        fetch(web, tmp_path)
    assert len(web.requests) == 3
    web.requests.clear()
    web.files[PATH] = File(data, cuts=[50] * 40, has_etag=False)  # so a rest cannot be requested
    with pytest.raises(CheckpointError, match=f"truncated: 50 bytes of {len(data)} came"):
        fetch(web, tmp_path / "other")
    assert len(web.requests) == 3


def test_a_truncated_archive_is_refused_and_the_next_start_goes_on(web: Web, tmp_path: Path) -> None:
    data = tar(MODEL)
    web.files[PATH] = File(data, cuts=[50, 0, 0, 0])
    with pytest.raises(CheckpointError, match=f"m.tar.gz is truncated: 50 bytes of {len(data)} came|50 of {len(data)}"):
        fetch(web, tmp_path)
    web.requests.clear()
    web.files[PATH].cuts.clear()
    assert fetch(web, tmp_path).tensors().names() == ["a", "b"]
    assert [asked.headers.get("Range") for asked in web.requests] == ["bytes=50-"]


def test_a_download_is_not_resumed_with_another_archive(web: Web, tmp_path: Path) -> None:
    web.files[PATH] = File(tar(MODEL), cuts=[50, 0, 0, 0])
    with pytest.raises(CheckpointError, match="truncated"):
        fetch(web, tmp_path)
    data = tar({**MODEL, "config.json": b'{"other": 1}'})
    web.files[PATH] = File(data)
    assert fetch(web, tmp_path).revision == hashlib.sha256(data).hexdigest()
    assert web.requests[-1].headers["If-Range"]


def test_a_part_that_is_already_complete_gives_the_checkpoint(web: Web, tmp_path: Path) -> None:
    data = tar(MODEL)
    web.files[PATH] = File(data, cuts=[50, 0, 0, 0])
    with pytest.raises(CheckpointError, match="truncated"):
        fetch(web, tmp_path)
    (part,) = tmp_path.rglob("archive.part")
    part.write_bytes(data)
    web.files[PATH].cuts.clear()
    assert fetch(web, tmp_path).revision == hashlib.sha256(data).hexdigest()


def test_an_unreachable_source_is_served_from_the_last_fetch(
    web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web.files[PATH] = File(tar(MODEL))
    first = fetch(web, tmp_path)
    web.files[PATH].status = 503
    assert fetch(web, tmp_path) == first
    web.stop()
    assert fetch(web, tmp_path) == first
    assert f"Serving revision {first.revision}, which was fetched last" in caplog.text
    assert fetch(web, tmp_path, first.revision) == first
    with pytest.raises(TransientError, match=r"m\.tar\.gz cannot be reached: .*refused.* no revision is in the cache"):
        fetch(web, tmp_path / "fresh")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "HTTP 401 Unauthorized: give a token as checkpoint_secret"),
        (403, "HTTP 403 Forbidden: the token .* may not read it, or the URL's signature has expired"),
        (404, "HTTP 404 Not Found: no such file"),
        (410, "HTTP 410 Gone: it cannot be fetched"),
        (503, "HTTP 503 Service Unavailable: it cannot be fetched now"),
    ],
)
def test_an_error_says_what_to_do(web: Web, tmp_path: Path, status: int, said: str) -> None:
    web.files[PATH] = File(status=status)
    with pytest.raises(CheckpointError, match=said) as refused:
        fetch(web, tmp_path, secret="sesame", query="?signature=sesame")
    assert "sesame" not in str(refused.value)
    assert len(web.requests) == (3 if status == 503 else 1)


def test_a_token_opens_and_goes_to_no_other_host(web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    web.files["/elsewhere"] = File(tar(MODEL))
    web.files[PATH] = File(token="sesame", location=web.url("/elsewhere", "localhost"))
    with caplog.at_level(logging.DEBUG, logger="bei_core"):
        assert fetch(web, tmp_path, secret="sesame").tensors().names() == ["a", "b"]
    assert [asked.headers.get("Authorization") for asked in web.requests] == ["Bearer sesame", None]
    assert "sesame" not in caplog.text
    web.files[PATH] = File(tar(MODEL), token="sesame")
    assert fetch(web, tmp_path, secret="Bearer sesame").tensors().names() == ["a", "b"]
    web.requests.clear()
    with pytest.raises(CheckpointError, match="HTTP 401") as denied:
        resolve(web.url(PATH).replace("//", "//me:ses%40me@"), root=tmp_path / "fresh")
    assert web.requests[0].headers["Authorization"] == "Basic " + base64.b64encode(b"me:ses@me").decode()
    assert "ses" not in str(denied.value)
    with pytest.raises(CheckpointError, match="bearer token, in one line") as refused:
        fetch(web, tmp_path, secret="ses\name")
    assert "ses" not in str(refused.value)


# --- What is refused


@pytest.mark.parametrize(
    "file",
    [
        File(b"<!DOCTYPE html><title>Log in</title>", "text/html; charset=utf-8"),
        File(b"\n <!DOCTYPE html><title>Log in</title>", "application/octet-stream"),
        File(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "application/xml"),
    ],
)
def test_a_web_page_is_no_tar(web: Web, tmp_path: Path, file: File) -> None:
    web.files[PATH] = file
    with pytest.raises(CheckpointError, match=r"m\.tar\.gz (is|answers with) a web page \(HTML.*\), not a tar"):
        fetch(web, tmp_path)
