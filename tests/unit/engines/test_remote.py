"""Engines in an object store: published complete; the error for a damaged one names the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bei_core.engines import remote as remote_module
from bei_core.engines.cache import EngineRef
from bei_core.engines.manifest import MANIFEST, FileEntry, _encode, parse_manifest, seal, verify
from bei_core.engines.remote import RemoteEngine, RemoteEngines
from bei_core.errors import CheckpointError, EngineCorruptError
from bei_core.storage.backends import FileSystem
from bei_core.storage.objects import ObjectStore, open_store
from tests.fakes import ENGINE_FILES, write_engine
from tests.stores import S3Server

A, B = "a" * 32, "b" * 32
NAMES = sorted((*ENGINE_FILES, MANIFEST))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    with S3Server() as server:
        yield server.endpoint


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket, with the environment that reaches it."""
    given = {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "sesame"}
    for name, value in {**given, "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    name = f"engines-{uuid4().hex}"
    open_store(f"s3://{name}")[0].mkdir(name)
    return f"s3://{name}"


@pytest.fixture(params=["file", "memory"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteEngines:
    """An empty store, a folder below its top."""
    if request.param == "s3":
        return RemoteEngines(f"{request.getfixturevalue('bucket')}/a/b/")
    top = f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{uuid4().hex}"
    return RemoteEngines(f"{top}/a/b")


# S3's client takes a third of a second to be made each time: it runs what stands for the rest.
everywhere = pytest.mark.parametrize("remote", ["file", "memory", "s3"], indirect=True)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine folder of address A."""
    write_engine(tmp_path / "engine", A)
    return tmp_path / "engine"


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at(remote: RemoteEngines, name: str, artifact: str = A) -> tuple[FileSystem, str]:
    return open_store(f"{remote.engine(artifact).url}/{name}")


def overwrite(remote: RemoteEngines, name: str, data: bytes) -> None:
    files, path = at(remote, name)
    files.pipe_file(path, data)


class Watched:
    """A store's file system that records writes, and fails at one file."""

    def __init__(self, files: FileSystem, watched: RemoteEngines, fails_at: str | None) -> None:
        self.files, self.remote, self.fails_at = files, RemoteEngines(watched.store.url), fails_at
        self.written: list[tuple[str, bool]] = []  # and whether there was an engine at that moment
        self.meanwhile: dict[str, Path] = {}  # what another replica pushes once a file is written

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - fsspec has no types
        return getattr(self.files, name)

    def put_file(self, source: str, target: str) -> None:
        name = target.partition(f"{A}/")[2]
        self.written.append((name, self.remote.engine(A).manifest() is not None))
        if name == self.fails_at:
            raise OSError("connection reset")
        self.files.put_file(source, target)
        if (folder := self.meanwhile.pop(name, None)) is not None:
            self.remote.push(folder)


def watch(remote: RemoteEngines, monkeypatch: pytest.MonkeyPatch, fails_at: str | None = None) -> Watched:
    """Replace the remote's file system by a `Watched` one, which writes one file at a time."""
    files, path = open_store(remote.store.url)
    watched = Watched(files, remote, fails_at)
    monkeypatch.setattr(remote_module, "_NUM_UPLOADS", 1)
    monkeypatch.setitem(vars(remote.store), "client", (watched, path))
    return watched


# --- There and back


@everywhere
def test_an_engine_comes_back_bit_for_bit(remote: RemoteEngines, engine: Path, tmp_path: Path) -> None:
    assert remote.engine(A).manifest() is None
    url = remote.push(engine)
    assert url == remote.engine(A).url
    assert remote.engine(A).manifest() == verify(engine)
    remote.engine(A).pull(tmp_path / "pulled", artifact=A)
    assert content(tmp_path / "pulled") == content(engine)


def test_an_engine_is_pulled_by_its_url(remote: RemoteEngines, engine: Path, tmp_path: Path) -> None:
    url = remote.push(engine)
    for number, spelt in enumerate((url, f"{url}/")):
        RemoteEngine(ObjectStore(spelt)).pull(tmp_path / str(number))
        assert content(tmp_path / str(number)) == content(engine)


def test_two_engines_in_one_store_stay_separate(remote: RemoteEngines, engine: Path, tmp_path: Path) -> None:
    write_engine(tmp_path / "other", B, precision="int8")
    remote.push(engine)
    assert remote.engine(B).manifest() is None
    remote.push(tmp_path / "other")
    found = [remote.engine(artifact).manifest() for artifact in (A, B)]
    assert [made.precision for made in found if made is not None] == ["f32", "int8"]


def test_what_is_there_is_not_written_again_unless_forced(
    remote: RemoteEngines, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = watch(remote, monkeypatch).written
    for force, expected in ((False, NAMES), (False, []), (True, NAMES)):
        written.clear()
        assert remote.push(engine, force=force) == remote.engine(A).url
        assert sorted(name for name, _ in written) == expected


# --- Writing


@everywhere
@pytest.mark.parametrize("force", [False, True])
def test_there_is_no_engine_until_all_its_files_are_there(
    remote: RemoteEngines, engine: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    if force:
        remote.push(engine)
    written = watch(remote, monkeypatch).written
    remote.push(engine, force=force)
    assert [name for name, _ in written][-1] == MANIFEST
    assert not any(is_there for _, is_there in written)
    assert remote.engine(A).manifest() is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("force", [False, True])
def test_a_push_that_fails_leaves_no_engine_and_can_be_tried_again(
    remote: RemoteEngines, engine: Path, tmp_path: Path, name: str, force: bool
) -> None:
    if force:
        remote.push(engine)
    with pytest.MonkeyPatch.context() as patch:
        watch(remote, patch, fails_at=name)
        with pytest.raises(CheckpointError, match="connection reset"):
            remote.push(engine, force=force)
    with pytest.raises(CheckpointError, match=f"{A} is not an engine: there is no manifest.json"):
        remote.engine(A).pull(tmp_path / "pulled", artifact=A)
    remote.push(engine)
    remote.engine(A).pull(tmp_path / "again", artifact=A)


def test_a_damaged_folder_is_not_pushed(remote: RemoteEngines, engine: Path) -> None:
    (engine / "model.bin").write_bytes(b"\x01weights" * 1000)
    with pytest.raises(EngineCorruptError, match=r"engine corrupt: .*model\.bin does not have the digest"):
        remote.push(engine)
    assert remote.engine(A).manifest() is None


def test_a_bucket_is_not_made_by_a_misspelt_url(bucket: str, engine: Path) -> None:
    misspelt = RemoteEngines(bucket + "x")
    with pytest.raises(CheckpointError, match="bucket does not exist"):
        misspelt.push(engine)
    with pytest.raises(CheckpointError, match="bucket does not exist"):
        misspelt.set_ref("k", EngineRef(A, "0" * 40))
    assert not open_store(bucket)[0].exists(bucket + "x")


def test_one_client_serves_all_that_a_start_asks(remote: RemoteEngines, engine: Path, tmp_path: Path) -> None:
    made: list[str] = []

    def count(url: str, secret: str | None = None) -> tuple[FileSystem, str]:
        made.append(url)
        return open_store(url, secret)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bei_core.storage.objects.open_store", count)
        assert made == [], "nothing is made before it is needed"
        assert remote.get_ref("k") is None
        remote.push(engine)
        remote.set_ref("k", EngineRef(A, "0" * 40))
        remote.engine(A).pull(tmp_path / "pulled", artifact=A)
        assert made == [remote.store.url]
        RemoteEngine(ObjectStore(remote.engine(A).url)).pull(tmp_path / "again")
        assert made == [remote.store.url, remote.engine(A).url]


# --- Two that push at once


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another build of the engine A, with other content."""
    made = write_engine(tmp_path / "other", A)
    for name in (MANIFEST, *ENGINE_FILES):
        (tmp_path / "other" / name).unlink()
    for name in ENGINE_FILES:
        (tmp_path / "other" / name).write_text(f"another {name}")
    seal(tmp_path / "other", made)
    return tmp_path / "other"


@pytest.mark.parametrize("name", sorted(ENGINE_FILES))
def test_of_two_builds_that_are_pushed_at_once_no_mixture_stays(
    remote: RemoteEngines, engine: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    watched = watch(remote, monkeypatch)
    watched.meanwhile[name] = other
    remote.push(engine)
    remote.engine(A).pull(tmp_path / "pulled", artifact=A)
    assert content(tmp_path / "pulled") == content(engine), "the last to write its manifest has written all files"


def test_the_same_build_pushed_at_once_is_written_once(
    remote: RemoteEngines, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(remote, monkeypatch)
    watched.meanwhile["model.bin"] = engine
    remote.push(engine)
    assert sorted(name for name, _ in watched.written) == NAMES


def test_a_push_ends_although_the_store_still_returns_deleted_files(
    remote: RemoteEngines, engine: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.push(other)
    watched = watch(remote, monkeypatch)

    def keep(path: str) -> None:
        assert len(watched.written) < 10 * len(NAMES), "it goes on for ever"

    monkeypatch.setattr(watched, "rm_file", keep, raising=False)
    with pytest.raises(
        CheckpointError, match=rf"{A}: after 3 pushes the manifest\.json is still that of another build"
    ):
        remote.push(engine, force=True)
    assert len(watched.written) == 3 * len(ENGINE_FILES)


# --- Damage there


@pytest.mark.parametrize("name", sorted(ENGINE_FILES))
@pytest.mark.parametrize("how", ["a bit", "short"])
def test_a_damaged_file_is_named(remote: RemoteEngines, engine: Path, tmp_path: Path, name: str, how: str) -> None:
    remote.push(engine)
    data = ENGINE_FILES[name]
    overwrite(remote, name, data[:-1] if how == "short" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(EngineCorruptError, match=f"^engine corrupt: .*{name} (has|does not have)"):
        remote.engine(A).pull(tmp_path / "pulled", artifact=A)


@everywhere
def test_a_missing_file_is_named(remote: RemoteEngines, engine: Path, tmp_path: Path) -> None:
    remote.push(engine)
    files, path = at(remote, "model.bin")
    files.rm_file(path)
    with pytest.raises(EngineCorruptError, match=rf"^engine corrupt: .*{A}/model\.bin is missing"):
        remote.engine(A).pull(tmp_path / "pulled", artifact=A)


def test_a_damaged_manifest_is_named(remote: RemoteEngines, engine: Path, tmp_path: Path) -> None:
    remote.push(engine)
    good = (engine / MANIFEST).read_bytes()
    for bad in (b"", b"{}", good[:-1], good.replace(b'"f32"', b'"f16"')):
        overwrite(remote, MANIFEST, bad)
        with pytest.raises(EngineCorruptError, match=rf"^engine corrupt: .*{A}/manifest\.json is not"):
            remote.engine(A).manifest()
        with pytest.raises(EngineCorruptError, match=rf"^engine corrupt: .*{A}/manifest\.json is not"):
            remote.engine(A).pull(tmp_path / "pulled", artifact=A)
    assert not (tmp_path / "pulled").exists()
    remote.push(engine, force=True)
    assert remote.engine(A).manifest() == verify(engine)


@pytest.mark.parametrize("name", ["../elsewhere", "/srv/elsewhere", "a/../../elsewhere"])
def test_a_manifest_writes_nothing_outside_the_folder(
    remote: RemoteEngines, engine: Path, tmp_path: Path, name: str
) -> None:
    made = parse_manifest((engine / MANIFEST).read_bytes(), "here")
    hostile = type(made)(
        **{field: getattr(made, field) for field in made.__struct_fields__} | {"files": {name: FileEntry(1, "0")}}
    )
    remote.push(engine)
    overwrite(remote, MANIFEST, _encode(hostile))
    with pytest.raises(EngineCorruptError, match="names files outside the folder"):
        remote.engine(A).pull(tmp_path / "pulled", artifact=A)
    assert {path.name for path in tmp_path.iterdir()} <= {"engine", "remote"}


def test_another_engine_in_the_place_of_one_is_refused(remote: RemoteEngines, engine: Path, tmp_path: Path) -> None:
    files, path = at(remote, "", B)
    remote.push(engine)
    for name in NAMES:
        files.pipe_file(f"{path}/{name}", (engine / name).read_bytes())
    with pytest.raises(EngineCorruptError, match=f"{B}/manifest.json is that of another engine, {A}"):
        remote.engine(B).pull(tmp_path / "pulled", artifact=B)
    RemoteEngine(ObjectStore(remote.engine(B).url)).pull(tmp_path / "by its URL")


# --- Refs


@everywhere
def test_a_request_is_remembered(remote: RemoteEngines) -> None:
    assert remote.get_ref("k") is None
    for revision in ("0" * 40, "1" * 40):
        remote.set_ref("k", EngineRef(A, revision))
        assert remote.get_ref("k") == EngineRef(A, revision)
    assert remote.get_ref("other") is None


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"artifact":"../x","source":"s","revision":"r"}'])
def test_a_damaged_ref_is_none_with_a_warning(
    remote: RemoteEngines, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    remote.set_ref("k", EngineRef(A, "0" * 40))
    files, path = open_store(f"{remote.store.url}/requests/k.json")
    files.pipe_file(path, answer)
    assert remote.get_ref("k") is None
    assert "requests/k.json is damaged" in caplog.text


def test_a_store_that_cannot_be_reached_is_no_empty_store(monkeypatch: pytest.MonkeyPatch) -> None:
    class Down:
        def cat_file(self, path: str, **_: object) -> bytes:
            raise ConnectionRefusedError(111, "Connection refused", path)

    monkeypatch.setattr("bei_core.storage.objects.open_store", lambda url, secret=None: (Down(), url))
    for ask in (lambda: RemoteEngine(ObjectStore("s3://b/a")).manifest(), lambda: RemoteEngines("s3://b").get_ref("k")):
        with pytest.raises(CheckpointError, match=r"s3://b/.*Connection refused"):
            ask()
