"""Rows go into a vector database once each, also if the job is killed and started again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bei_core.errors import BeiError, ConfigError
from bei_core.jobs import JobOptions, embed
from bei_core.jobs.output import Output
from bei_core.jobs.report import Report
from bei_core.jobs.sinks import absolute_sink, target_of
from bei_core.jobs.sinks.base import Sink, Target, records_of
from bei_core.storage.errors import TransientError
from tests.fakes import WIDTH
from tests.unit.cli.fake_model import opens

SINK = "qdrant:http://user:secret@host#table"


class FakeSink(Sink):
    """A database that is a dictionary."""

    rows: dict[str, dict[str, Any]]
    committed: list[int]
    num_written: int
    fails_at: int
    num_failures: int  # of the writes from `fails_at` on
    error: Exception

    def refusals(self, kept: pa.Table) -> dict[int, str]:
        """Refuse text that ends with `!`."""
        values = kept["id"].to_pylist() if "id" in kept.column_names else []
        return {row: "ends with !" for row, value in enumerate(values) if str(value).endswith("!")}

    def upsert(self, rows: pa.Table) -> None:
        """Keep the rows; the write that should fail keeps them too, as a server whose answer is lost."""
        assert rows.schema == self.schema
        FakeSink.num_written += 1
        FakeSink.rows |= {row["key"]: row for row in rows.to_pylist()}
        if 0 <= FakeSink.num_written - FakeSink.fails_at < FakeSink.num_failures:
            raise FakeSink.error

    @staticmethod
    def commit(target: Target, parts: Iterable[pa.Table]) -> None:
        """Note the number of rows of each part."""
        FakeSink.committed = [len(part) for part in parts]


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> type[FakeSink]:
    module = ModuleType("bei_core.jobs.sinks.qdrant")
    module.Qdrant = FakeSink  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bei_core.jobs.sinks.qdrant", module)
    FakeSink.rows, FakeSink.committed, FakeSink.num_written, FakeSink.fails_at = {}, [], 0, 1 << 30
    FakeSink.error = ConnectionError("gone\nfor good")
    opens(monkeypatch)
    monkeypatch.setattr("bei_core.storage.errors._PAUSES_S", (0.0, 0.0, 0.0))
    return FakeSink


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(
        "".join(json.dumps({"id": 7, "text": f"the {index}" if index else None}) + "\n" for index in range(20))
    )
    return path


def run(source: Path, output: Path, **options: Any) -> Report:  # noqa: ANN401
    chosen = JobOptions(**{"rows_per_part": 4, "keep": ("id",), "sink": SINK, **options})
    return embed(source, output, settings={"model_id": "owner/name"}, options=chosen)


def test_each_row_has_its_own_key_although_ids_are_the_same(
    database: type[FakeSink], tmp_path: Path, source: Path
) -> None:
    run(source, tmp_path / "out")
    assert sorted(row["row"] for row in database.rows.values()) == list(range(1, 20))
    assert {row["id"] for row in database.rows.values()} == {7}
    assert {len(row["embedding"]) for row in database.rows.values()} == {WIDTH}
    assert database.committed == [3, 4, 4, 4, 4]


def test_a_database_that_cannot_be_opened_does_not_make_the_corrected_command_another_job(
    monkeypatch: pytest.MonkeyPatch, database: type[FakeSink], tmp_path: Path, source: Path
) -> None:
    def refuse(sink: FakeSink, target: Target, schema: pa.Schema) -> None:
        raise ConnectionError("no such host")

    with monkeypatch.context() as patched:
        patched.setattr(database, "__init__", refuse)
        with pytest.raises(BeiError, match="no such host"):
            run(source, tmp_path / "out", sink="qdrant:http://hots")
    run(source, tmp_path / "out", sink="qdrant:http://host")
    assert len(database.rows) == 19


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_job_that_is_stopped_and_started_again_writes_each_row_once(
    monkeypatch: pytest.MonkeyPatch, database: type[FakeSink], tmp_path: Path, source: Path, at: int
) -> None:
    count, publish = 0, Output.publish

    def killed(*arguments: Any) -> None:  # noqa: ANN401
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        publish(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Output, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out")
    assert database.committed == []
    report = run(source, tmp_path / "out")
    assert report.num_parts_before == at - 1
    assert sorted(row["row"] for row in database.rows.values()) == list(range(1, 20))
    assert sum(database.committed) == 19


def test_a_database_that_does_not_answer_for_a_moment_does_not_end_the_job(
    database: type[FakeSink], caplog: pytest.LogCaptureFixture, tmp_path: Path, source: Path
) -> None:
    database.fails_at, database.num_failures = 2, 3
    run(source, tmp_path / "out")
    assert len(database.rows) == 19
    assert caplog.text.count("qdrant:http://host: no answer (ConnectionError); trying again") == 3


@pytest.mark.parametrize(
    ("error", "num_tries", "kind"),
    [(ConnectionError("gone\nfor good"), 4, TransientError), (ValueError("gone"), 1, BeiError)],
)
def test_a_database_that_fails_is_one_line_without_a_secret(
    database: type[FakeSink], tmp_path: Path, source: Path, error: Exception, num_tries: int, kind: type[BeiError]
) -> None:
    database.fails_at, database.num_failures, database.error = 2, num_tries, error
    with pytest.raises(BeiError) as failed:
        run(source, tmp_path / "out")
    assert type(failed.value) is kind
    assert str(failed.value) == "qdrant:http://host#table failed: gone; start the job again to go on"
    run(source, tmp_path / "out")
    assert len(database.rows) == 19
    assert "secret" not in (tmp_path / "out" / "_job.json").read_text()


def test_rows_that_the_database_cannot_hold_are_rejected_with_the_reason(
    database: type[FakeSink], tmp_path: Path
) -> None:
    rows = [{"id": f"i{index}" + "!" * (index == 5), "text": "the"} for index in range(8)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(tmp_path / "in.jsonl", tmp_path / "out")
    kept = [row for row in range(8) if row != 5]
    assert (
        sorted(row["row"] for row in database.rows.values())
        == kept
        == pq.read_table(tmp_path / "out")["row"].to_pylist()
    )
    assert report.num_rejected == 1
    (line,) = (tmp_path / "out" / "_rejected-00001.jsonl").read_text().splitlines()
    assert (json.loads(line)["row"], json.loads(line)["reason"]) == (5, "ends with !")


def test_a_request_has_less_bytes_than_a_server_takes() -> None:
    """Qdrant takes 32 MB by default; 512 vectors of 4,096 numbers have 44 MB."""
    vectors = np.random.default_rng(0).standard_normal((600, 4096), np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4096)
    table = pa.table({"row": range(600), "text": ["x" * 20_000] * 600, "embedding": column})
    requests = list(records_of(table))
    assert max(len(json.dumps(records)) for records in requests) < 20 << 20
    assert [record["row"] for records in requests for record in records] == list(range(600))


def test_another_database_is_another_job(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="is the output of another job: its `options` was"):
        run(source, tmp_path / "out", sink="qdrant:http://other")


def test_chunks_of_a_text_have_keys_of_their_own(database: type[FakeSink], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "the of and to " * 12}))
    run(tmp_path / "in.jsonl", tmp_path / "out", keep=(), chunk=True, chunk_tokens=10)
    assert sorted(row["chunk"] for row in database.rows.values()) == list(range(len(database.rows)))
    assert len(database.rows) > 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_dtype": "bit"}, "`sink` takes embeddings in float32 or float16"),
        ({"job": "tokens"}, "`sink` takes embeddings"),
        ({"sink": "elastic:http://host"}, "with a kind of lancedb, qdrant, faiss, pgvector, milvus, not 'elastic:"),
        ({"sink": "lancedb"}, "`sink` must be KIND:PATH or KIND:URL"),
        ({"chunk_tokens": 8}, "`chunk_tokens` needs `chunk`"),
    ],
)
def test_an_unknown_database_or_an_output_that_it_cannot_hold_is_refused(
    tmp_path: Path, source: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(source, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "_job.json").exists()


def test_a_client_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.delattr("bei_core.jobs.run.open_engine")  # it is named before an engine is built
    with pytest.raises(ConfigError, match=r"lancedb is not installed; pip install 'bei-core\[lancedb\]'"):
        run(source, tmp_path / "out", sink=f"lancedb:{tmp_path}")


def test_a_target_has_a_table() -> None:
    assert target_of("lancedb:/data/x") == ("lancedb", "/data/x", "embeddings")
    assert absolute_sink("pgvector:host=h dbname=d#docs") == "pgvector:host=h dbname=d#docs"
    assert absolute_sink("milvus:http://host:19530#docs") == "milvus:http://host:19530#docs"
    assert absolute_sink("lancedb:lance#docs") == f"lancedb:{Path.cwd()}/lance#docs"
    assert target_of("pgvector:postgresql://me:pw@host/db#docs") == ("pgvector", "postgresql://me:pw@host/db", "docs")


@pytest.mark.parametrize("file", ["", "no/such/folder/index.faiss"])
def test_a_faiss_file_that_cannot_be_written_is_refused_before_an_engine_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, file: str
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    monkeypatch.delattr("bei_core.jobs.run.open_engine")
    with pytest.raises(ConfigError, match="cannot be written; `sink` faiss:FILE needs a file in a folder that exists"):
        run(source, tmp_path / "out", sink=f"faiss:{tmp_path / file}")
