"""Input and output in an object store whose driver fails for a moment, with errors that are no OSError."""

from __future__ import annotations

import gzip
import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bei_core.errors import ConfigError, StartError
from bei_core.jobs.inputs import Part
from bei_core.jobs.job import Job
from bei_core.storage.backends import AzureBlobStorage, GoogleCloudStorage, Options
from bei_core.storage.errors import TransientError
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.conftest import WORDS
from tests.unit.jobs.test_job import contents, run


class HttpResponseError(Exception):
    """As Azure's, which is no OSError."""


class FailingFile(io.BytesIO):
    """A file whose reads fail when the store does."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO.read`."""
        FailingStore.fail("read")
        return super().read(size)


class FailingStore(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """A store that fails the next calls of some kinds."""

    num_failures: dict[str, int]

    @classmethod
    def fail(cls, kind: str) -> None:
        """Raises the error of the driver, unless all failures of this kind have happened."""
        if cls.num_failures.get(kind, 0) > 0:
            cls.num_failures[kind] -= 1
            raise HttpResponseError("the server is busy\nRequestId: 1")

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:  # noqa: ANN401 - fsspec's own options
        """Writes a file."""
        self.fail("put")
        super().pipe_file(path, value, **options)

    def find(self, path: str, **options: Any) -> Any:  # noqa: ANN401
        """Lists a folder."""
        self.fail("list")
        return super().find(path, **options)

    def info(self, path: str, **options: Any) -> Any:  # noqa: ANN401
        """Returns the entry of a file."""
        self.fail("info")
        return super().info(path, **options)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # noqa: ANN401
        """Opens a file."""
        self.fail("open")
        return FailingFile(self.cat_file(path)) if mode == "rb" else super().open(path, mode, **options)


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of its own for each test, and no pauses."""

    def opened(backend: GoogleCloudStorage, options: Options) -> FailingStore:
        return FailingStore(skip_instance_cache=True)

    FailingStore.num_failures = {}
    monkeypatch.setattr(GoogleCloudStorage, "open", opened)
    monkeypatch.setattr("bei_core.storage.errors._PAUSES_S", (0.0, 0.0, 0.0))
    opens(monkeypatch)
    return uuid.uuid4().hex


def stored(bucket: str, folder: str) -> dict[str, bytes]:
    """The files of a folder of the bucket."""
    store, root = FailingStore(), f"/{bucket}/{folder}/"
    return {path.removeprefix(root): store.cat_file(path) for path in store.find(root)}


def test_a_put_that_fails_for_a_moment_does_not_end_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, bucket: str
) -> None:
    run(source, tmp_path / "out")
    publish, num_published = Job.publish, 0

    def busy(*arguments: Any) -> None:  # noqa: ANN401
        nonlocal num_published
        num_published += 1
        FailingStore.num_failures["put"] = 3 if num_published == 4 else 0
        publish(*arguments)

    monkeypatch.setattr(Job, "publish", busy)
    run(source, f"gs://{bucket}/out")
    assert num_published == 7
    assert stored(bucket, "out") == {name: each for name, each in contents(tmp_path / "out").items() if name != ".lock"}


def test_a_store_that_keeps_failing_ends_the_job_with_one_line(source: Path, bucket: str) -> None:
    FailingStore.num_failures["put"] = 1000
    with pytest.raises(TransientError, match=r"^gs://.*/_job\.json: HttpResponseError: the server is busy\.$"):
        run(source, f"gs://{bucket}/out")
    assert FailingStore.num_failures["put"] == 996, "four tries"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=16)
    return sink.getvalue()


def arrow(rows: list[dict[str, Any]]) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=16)
    return sink.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": lines,
    "jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "jsonl.zst": lambda rows: pa.compress(lines(rows), "zstd", asbytes=True),
    "parquet": parquet,
    "arrow": arrow,
}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [{"id": index, "text": f"{WORDS[index % 12]} {WORDS[index // 12]}"} for index in range(100)]


@pytest.mark.parametrize("kind", ["read", "open", "info"])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_read_that_fails_for_a_moment_does_not_end_the_job(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    bucket: str,
    rows: list[dict[str, Any]],
    ending: str,
    kind: str,
) -> None:
    FailingStore().pipe_file(f"/{bucket}/in.{ending}", FORMATS[ending](rows))
    run(f"gs://{bucket}/in.{ending}", tmp_path / "whole", keep=("id",))
    prepare = Job.prepare

    def busy(job: Job, part: Part) -> Any:  # noqa: ANN401
        if part.index in {0, 3}:
            FailingStore.num_failures[kind] = 2
        return prepare(job, part)

    monkeypatch.setattr(Job, "prepare", busy)
    run(f"gs://{bucket}/in.{ending}", tmp_path / "out", keep=("id",))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert f"/in.{ending}: no answer (HttpResponseError); trying again in 0 s" in caplog.text


@pytest.mark.parametrize("kind", ["list", "read", "open"])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_store_that_fails_for_a_moment_at_the_start_does_not_end_the_job(
    tmp_path: Path, bucket: str, rows: list[dict[str, Any]], ending: str, kind: str
) -> None:
    for name in ("a", "b"):
        FailingStore().pipe_file(f"/{bucket}/in/{name}.{ending}", FORMATS[ending](rows))
    run(f"gs://{bucket}/in", tmp_path / "whole", keep=("id",))
    FailingStore.num_failures[kind] = 3
    run(f"gs://{bucket}/in", tmp_path / "out", keep=("id",))
    assert FailingStore.num_failures[kind] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "num_files"), [("in/?.jsonl", 2), ("in/a#1.jsonl", 1), ("in?/x.jsonl", 1), ("in/[ab]?1.*", 1), ("in/", 3)]
)
def test_question_marks_and_hashes_belong_to_globs_and_names(
    tmp_path: Path, bucket: str, rows: list[dict[str, Any]], name: str, num_files: int
) -> None:
    for stored_name in ("in/a.jsonl", "in/b.jsonl", "in/a#1.jsonl", "in2/x.jsonl"):
        FailingStore().pipe_file(f"/{bucket}/{stored_name}", lines(rows))
    assert run(f"gs://{bucket}/{name}", tmp_path / "out").num_rows == num_files * len(rows)
    with pytest.raises(StartError, match=rf"{bucket}/no\?\.jsonl"):
        run(f"gs://{bucket}/no?.jsonl", tmp_path / "other")
    FailingStore.num_failures["open"] = 4
    with pytest.raises(StartError, match=rf"{bucket}/in/a#1\.jsonl: HttpResponseError"):
        run(f"gs://{bucket}/in/a#1.jsonl", tmp_path / "other")


@pytest.mark.parametrize(
    "url",
    [
        "abfs://c@account.dfs.core.windows.net/d/f.parquet?sv=1&sig=sesame",
        "https://account.blob.core.windows.net/c/f.parquet?sv=1&sig=sesame",
        "https://account.blob.core.windows.net/c/f.parquet?sesame",
        "gs://bucket/f.parquet?X-Goog-Signature=sesame/1",
    ],
)
def test_a_signature_in_the_url_of_an_input_is_refused_and_not_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(AzureBlobStorage, "open", GoogleCloudStorage.open)
    FailingStore.num_failures.update(info=9, list=9)
    with pytest.raises(ConfigError, match=r"/f\.parquet: the URL of an input has no query") as refused:
        run(url, tmp_path / "out")
    assert "sesame" not in caplog.text + str(refused.value)


def test_an_input_that_does_not_exist_ends_the_job_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: str
) -> None:
    monkeypatch.setattr("bei_core.storage.errors.time.sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(StartError, match=r"in\.jsonl"):
        run(f"gs://{bucket}/in.jsonl", tmp_path / "out")


@pytest.mark.parametrize("kind", ["list", "read", "open"])
@pytest.mark.parametrize("ending", FORMATS)
def test_an_input_that_keeps_failing_ends_the_job_with_one_line(
    tmp_path: Path, bucket: str, rows: list[dict[str, Any]], ending: str, kind: str
) -> None:
    FailingStore().pipe_file(f"/{bucket}/in/a.{ending}", FORMATS[ending](rows))
    FailingStore.num_failures[kind] = 1000
    with pytest.raises(TransientError, match=rf"^gs://+{bucket}/in.*: HttpResponseError: the server is busy\.$"):
        run(f"gs://{bucket}/in", tmp_path / "out")
