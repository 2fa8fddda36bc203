"""Checkpoints fetched from an S3 server."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.errors import CheckpointError, DiskError, UnsupportedModelError
from bei_core.storage.backends import FileSystem
from bei_core.storage.errors import TransientError
from bei_core.text.published import check_tokenizer
from tests.hub import as_bytes, f32, pack
from tests.stores import AWS_SECRET, BUCKET, MODEL, SENTENCE, UNWANTED, WEIGHTS, S3Server, files_of, put

SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FileSystem:
    """The server's file system; the environment points to the server and has no credentials."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("bei_core.storage.transfer._PAUSES_S", (0.0, 0.0, 0.0))
    return server.store()


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder of the bucket that is this test's own."""
    return f"{BUCKET}/{abs(hash(request.node.nodeid))}"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The reads of the store: names of files, and the byte at which each read began."""
    asked: list[tuple[str, int]] = []
    read = S3FileSystem.cat_file

    def note(files: S3FileSystem, path: str, start: int, end: int) -> bytes:
        asked.append((path.rpartition("/")[2], start))
        return bytes(read(files, path, start=start, end=end))

    monkeypatch.setattr(S3FileSystem, "cat_file", note)
    return asked


def change_reads(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, int, bytes], bytes]) -> None:
    """Pass each read of the store through `change`."""
    read = S3FileSystem.cat_file

    def changed(files: S3FileSystem, path: str, start: int, end: int) -> bytes:
        return change(path, start, bytes(read(files, path, start=start, end=end)))

    monkeypatch.setattr(S3FileSystem, "cat_file", changed)


def fetch(folder: str, root: Path, revision: str | None = None, secret: str | None = AWS_SECRET) -> Checkpoint:
    return resolve(f"s3://{folder}", revision, secret=secret, root=root)


# --- What is fetched


def test_a_folder_is_fetched_whole_and_only_what_is_needed(s3: FileSystem, folder: str, tmp_path: Path) -> None:
    put(s3, folder, {**SENTENCE, **UNWANTED})
    checkpoint = fetch(folder + "/", tmp_path)
    assert files_of(checkpoint) == set(SENTENCE)
    assert checkpoint.source == f"s3://{folder}"
    assert checkpoint.folder.name == checkpoint.revision
    assert checkpoint.folder.is_relative_to(tmp_path)
    assert checkpoint.tensors().names() == ["a", "b"]
    assert float(checkpoint.tensors("2_Dense").f32("linear.weight")[0]) == 7


def test_no_weight_is_fetched_of_a_tokenizer_that_is_refused(
    s3: FileSystem, folder: str, tmp_path: Path, reads: list[tuple[str, int]]
) -> None:
    put(s3, folder, {name: content for name, content in SENTENCE.items() if name != "tokenizer.json"})
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json, nor vocab\.txt for BertTokenizer"):
        resolve(f"s3://{folder}", secret=AWS_SECRET, root=tmp_path, check=check_tokenizer)
    assert not [name for name, _ in reads if name.endswith(".safetensors")]


def test_the_shards_of_an_index_are_fetched(s3: FileSystem, folder: str, tmp_path: Path) -> None:
    index = {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    shards = {SHARDS[0]: pack({"a": f32(1)}), SHARDS[1]: pack({"b": f32(2)}), "other.safetensors": b"not wanted"}
    put(s3, folder, as_bytes({"config.json": {}, "model.safetensors.index.json": index, **shards}))
    assert fetch(folder, tmp_path).tensors().names() == ["a", "b"]
    s3.rm(f"{folder}/{SHARDS[1]}")
    with pytest.raises(CheckpointError, match=f"names {SHARDS[1]}, which is missing"):
        fetch(folder, tmp_path)


def test_what_is_there_is_not_fetched_again(
    s3: FileSystem, folder: str, tmp_path: Path, reads: list[tuple[str, int]]
) -> None:
    put(s3, folder, MODEL)
    first = fetch(folder, tmp_path)
    assert {name for name, _ in reads} == set(MODEL)
    reads.clear()
    assert fetch(folder, tmp_path) == first
    assert reads == []


def test_another_content_is_another_revision_and_the_old_one_stays(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, folder, MODEL)
    first = fetch(folder, tmp_path)
    put(s3, folder, {"README.md": b"nothing that a model needs"})
    assert fetch(folder, tmp_path) == first
    put(s3, folder, {"model.safetensors": pack({"a": f32(9, 2), "b": f32(3)})})
    second = fetch(folder, tmp_path)
    assert second.revision != first.revision
    assert float(second.tensors().f32("a")[0]) == 9
    assert float(first.tensors().f32("a")[0]) == 1
    with pytest.raises(CheckpointError, match=f"is at revision {second.revision}; {'0' * 64} is not in the cache"):
        fetch(folder, tmp_path, "0" * 64)
    monkeypatch.setattr("bei_core.checkpoint.stores.ObjectStore", None)  # a call of it would raise
    assert fetch(folder, tmp_path, first.revision) == first


@pytest.mark.parametrize("revision", ["main", "../../etc", "0" * 63])
def test_a_revision_of_another_form_is_refused(revision: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a revision is the SHA-256 of the folder's listing"):
        fetch("b/a", tmp_path, revision)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"config.json": b"{}", "model.pt": b"pickle"},
            "has no model.safetensors and no pytorch_model.bin but model.pt. BEI reads",
        ),
        ({"x.txt": b"1"}, "has no config.json; there is x.txt"),
        ({}, "has no config.json; there is nothing"),
        ({**MODEL, "config.json": b"{}", "modules.json": b"{}"}, "modules.json is not a list of modules"),
        ({**MODEL, "model.safetensors": WEIGHTS[:-1]}, "model.safetensors is truncated"),
        (
            {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
            "pytorch_model.bin cannot be read: it is no zip archive",
        ),
    ],
)
def test_what_is_no_model_is_refused_by_name(
    s3: FileSystem, folder: str, tmp_path: Path, content: dict[str, bytes], said: str
) -> None:
    put(s3, folder, content)
    with pytest.raises(CheckpointError) as refused:
        fetch(folder, tmp_path)
    assert said in str(refused.value)
    assert not list(tmp_path.rglob("model.safetensors")) + list(tmp_path.rglob("*.bin"))


def test_a_file_and_a_missing_bucket_are_no_folder(s3: FileSystem, folder: str, tmp_path: Path) -> None:
    put(s3, folder, MODEL)
    with pytest.raises(CheckpointError, match=r"config\.json is a file; give the model's folder"):
        fetch(f"{folder}/config.json", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"s3://no-such-bucket/a: does not exist: The specified bucket does not exist"
    ):
        fetch("no-such-bucket/a", tmp_path)


def test_credentials_are_asked_for_where_there_are_none(s3: FileSystem, folder: str, tmp_path: Path) -> None:
    put(s3, folder, MODEL)
    with pytest.raises(CheckpointError, match=r"Unable to locate credentials.*aws_access_key_id.*checkpoint_secret"):
        fetch(folder, tmp_path, secret=None)


def test_the_sdks_own_credentials_do(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, folder, MODEL)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    assert fetch(folder, tmp_path, secret=None).tensors().names() == ["a", "b"]


# --- What goes wrong on the way


def test_a_fetch_that_was_cut_off_goes_on_where_it_was(
    s3: FileSystem, folder: str, tmp_path: Path, reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, folder, MODEL)
    monkeypatch.setattr("bei_core.storage.transfer._BLOCK", 16)

    def cut(path: str, start: int, data: bytes) -> bytes:
        if path.endswith(".safetensors") and start >= 48:
            raise ConnectionResetError("sesame")
        return data

    with monkeypatch.context() as patch:
        change_reads(patch, cut)
        with pytest.raises(CheckpointError, match=f"s3://{folder}"):
            fetch(folder, tmp_path)
    reads.clear()
    assert fetch(folder, tmp_path).tensors().names() == ["a", "b"]
    assert min(start for name, start in reads if name == "model.safetensors") == 48
    assert {name for name, _ in reads} == {"model.safetensors"}


def test_a_passing_fault_is_tried_again(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3, folder, MODEL)
    faults = [ConnectionResetError("sesame"), ConnectionResetError("sesame")]

    def fail(path: str, start: int, data: bytes) -> bytes:
        if path.endswith(".safetensors") and faults:
            raise faults.pop()
        return data

    change_reads(monkeypatch, fail)
    assert fetch(folder, tmp_path).tensors().names() == ["a", "b"]
    assert caplog.text.count("trying again") == 2
    assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1] + b"\x7f", "model.safetensors is damaged or was tampered with: its MD5 is"),
        (lambda data: b"", "model.safetensors is truncated: 0 bytes came of"),
        (lambda data: data + b"x", "model.safetensors is truncated"),
    ],
)
def test_a_tampered_or_truncated_file_is_refused_by_name(
    s3: FileSystem,
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
    said: str,
) -> None:
    put(s3, folder, MODEL)
    with monkeypatch.context() as patch:
        change_reads(patch, lambda path, _, data: change(data) if path.endswith(".safetensors") else data)
        with pytest.raises(CheckpointError) as refused:
            fetch(folder, tmp_path)
    assert f"s3://{folder}/{said}" in str(refused.value)
    assert not list(tmp_path.rglob("model.safetensors"))
    assert float(fetch(folder, tmp_path).tensors().f32("b")[0]) == 3  # nothing of it was kept


def test_an_etag_that_is_no_md5_is_not_taken_for_one(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, folder, MODEL)
    s3.pipe_file(f"{folder}/model.safetensors", WEIGHTS, ServerSideEncryption="aws:kms")
    change_reads(monkeypatch, lambda path, _, data: data[:-1] + b"A" if path.endswith(".safetensors") else data)
    assert fetch(folder, tmp_path).tensors().names() == ["a", "b"]


def test_a_folder_that_changes_meanwhile_is_refused(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, folder, MODEL)

    def change(path: str, start: int, data: bytes) -> bytes:
        if path.endswith(".safetensors"):
            put(s3, folder, {"config.json": b'{"other": 1}'})
        return data

    with monkeypatch.context() as patch:
        change_reads(patch, change)
        with pytest.raises(CheckpointError, match="changed while it was fetched"):
            fetch(folder, tmp_path)
    assert fetch(folder, tmp_path).read_json("config.json") == {"other": 1}
    (left,) = tmp_path.rglob(".partial-*")
    os.utime(left, (0, 0))  # no process has resumed it for long
    put(s3, folder, MODEL)
    fetch(folder, tmp_path)
    assert not left.exists()


def test_without_locks_the_later_one_adopts_what_the_quicker_one_published(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, folder, MODEL)
    monkeypatch.setattr("bei_core.storage.cache.lock_file", lambda *_: nullcontext(False))
    quicker: list[Checkpoint] = []
    overtaken: list[str] = []

    def overtake(path: str, start: int, data: bytes) -> bytes:
        if path.endswith(".safetensors") and not overtaken:
            overtaken.append(path)
            quicker.append(fetch(folder, tmp_path))
        return data

    change_reads(monkeypatch, overtake)
    assert fetch(folder, tmp_path) == quicker[0]
    assert quicker[0].tensors().names() == ["a", "b"]


def test_a_damaged_cache_is_fetched_again(
    s3: FileSystem, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3, folder, MODEL)
    first = fetch(folder, tmp_path)
    (first.folder / "model.safetensors").write_bytes(b"")
    assert fetch(folder, tmp_path) == first
    assert first.tensors().names() == ["a", "b"]
    assert "model.safetensors has 0 bytes of" in caplog.text


def test_an_unreachable_source_is_served_from_the_last_fetch(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3, folder, MODEL)
    first = fetch(folder, tmp_path)

    def unplugged(files: S3FileSystem, path: str, **options: object) -> object:
        raise ConnectionError("no route")

    monkeypatch.setattr(S3FileSystem, "find", unplugged)
    assert fetch(folder, tmp_path) == first
    assert f"no route. Serving revision {first.revision}, which was fetched last" in caplog.text
    with pytest.raises(TransientError, match=f"no route. And revision {'0' * 64} is not in the cache"):
        fetch(folder, tmp_path, "0" * 64)
    with pytest.raises(TransientError, match=r"no route\. And no revision is in the cache"):
        fetch(folder, tmp_path / "fresh")


def test_an_answer_that_denies_access_is_not_out_of_reach(
    s3: FileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, folder, MODEL)
    fetch(folder, tmp_path)

    def denied(files: S3FileSystem, path: str, **options: object) -> object:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(S3FileSystem, "find", denied)
    with pytest.raises(CheckpointError, match="access denied: Forbidden"):
        fetch(folder, tmp_path)


def test_two_that_start_at_once_fetch_once(
    s3: FileSystem, folder: str, tmp_path: Path, reads: list[tuple[str, int]]
) -> None:
    put(s3, folder, MODEL)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch(folder, tmp_path), range(2))
    assert first == second
    assert sorted(name for name, _ in reads) == sorted(MODEL)


def test_a_cache_that_cannot_be_written_names_its_setting(s3: FileSystem, folder: str, tmp_path: Path) -> None:
    put(s3, folder, MODEL)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DiskError, match=r"cannot read or write .*set cache_dir \(BEI_CACHE_DIR\)"):
        fetch(folder, tmp_path / "file")


def test_no_secret_is_in_a_log_line(
    s3: FileSystem, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3, folder, MODEL)
    with caplog.at_level(logging.INFO, logger="bei_core"):
        fetch(folder, tmp_path)
    lines = [record.message for record in caplog.records if record.name.startswith("bei_core")]
    assert [line.split(":")[0] for line in lines] == ["fetching s3", "fetched s3"]
    assert f"fetched s3://{folder}: {len(WEIGHTS)} B in" in lines[1]
    assert "sesame" not in caplog.text
    assert "sesame" not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
