"""A job that is stopped and started again leaves each row once in every vector database, with its own vector."""

from __future__ import annotations

import importlib
import json
import math
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bei_core.errors import BeiError
from bei_core.jobs import JobOptions, embed
from bei_core.jobs.output import Output
from bei_core.jobs.report import Report
from bei_core.jobs.sinks import check_target, open_sink, target_of
from tests.unit.cli.fake_model import opens

NUM_ROWS = 50
TABLES = {
    "qdrant": "Docs 2026",
    "pgvector": "Docs 2026",
    "lancedb": "docs-2026",
    "milvus": "docs_2026",
}  # names that each takes
WORDS = ["the", "of", "and", "to", "in", "a", "is", "that"]  # each a token of its own

Found = dict[int, tuple[Any, list[float]]]  # id and vector, by the number of the row


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows: list[dict[str, object]] = [
        {"id": f"d{index % 7}", "tags": [{"n": index}], "text": f"{WORDS[index % 8]} {WORDS[index // 8]}"}
        for index in range(NUM_ROWS)
    ]
    rows[3]["text"] = rows[40]["text"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    pgserver = pytest.importorskip("pgserver")
    with tempfile.TemporaryDirectory() as folder:  # another user must reach it, as PostgreSQL does not run as root
        server = pgserver.get_server(Path(folder) / "data")
        yield server.get_uri()
        server.cleanup()


def run(source: Path, output: Path, sink: str) -> Report:
    options = JobOptions(rows_per_part=8, keep=("id", "tags"), sink=sink)
    return embed(source, output, settings={"model_id": "owner/name"}, options=options)


def of_lancedb(location: str, table: str) -> Found:
    import lancedb

    rows = lancedb.connect(location).open_table(table).to_arrow().to_pylist()
    return found_of(len(rows), ((row["row"], row["id"], row["embedding"]) for row in rows))


def of_qdrant(location: str, table: str) -> Found:
    from qdrant_client import QdrantClient

    client = QdrantClient(path=location)
    points, _ = client.scroll(table, limit=1000, with_vectors=True)
    client.close()
    return found_of(len(points), ((point.payload["row"], point.payload["id"], point.vector) for point in points))


def of_milvus(location: str, table: str) -> Found:
    from pymilvus import MilvusClient

    client = MilvusClient(uri=location)
    rows = client.query(table, filter="row >= 0", output_fields=["row", "id", "embedding"], limit=1000)
    client.close()
    return found_of(len(rows), ((row["row"], row["id"], row["embedding"]) for row in rows))


def of_pgvector(location: str, table: str) -> Found:
    import psycopg

    with psycopg.connect(location) as connection:
        rows = connection.execute(f'SELECT row, id, embedding::text, tags FROM "{table}"').fetchall()  # type: ignore[call-overload,unused-ignore]
    assert all(tags == [{"n": row}] for row, _, _, tags in rows)
    return found_of(len(rows), ((row, name, json.loads(vector)) for row, name, vector, _ in rows))


def found_of(count: int, rows: Iterator[tuple[int, Any, Any]]) -> Found:
    found = {row: (name, list(vector)) for row, name, vector in rows}
    assert len(found) == count, "a row is there twice"
    return found


READERS: dict[str, Callable[[str, str], Found]] = {
    "lancedb": of_lancedb,
    "qdrant": of_qdrant,
    "milvus": of_milvus,
    "pgvector": of_pgvector,
}


@pytest.mark.parametrize("kind", READERS)
def test_each_row_is_there_once_after_a_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    opens(monkeypatch)
    places = {"lancedb": tmp_path / "lance", "qdrant": tmp_path / "qdrant", "milvus": tmp_path / "milvus.db"}
    location = str(places.get(kind) or request.getfixturevalue("postgres"))
    table = TABLES[kind]
    sink, publish, calls = f"{kind}:{location}#{table}", Output.publish, []

    def stopping(*arguments: Any) -> None:  # noqa: ANN401
        calls.append(arguments)
        if len(calls) == 3:  # the rows are in the database, and the file of the part is not there
            raise KeyboardInterrupt
        publish(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Output, "publish", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out", sink)
    run(source, tmp_path / "out", sink)
    expected = pq.read_table(tmp_path / "out").to_pydict()
    assert len(set(map(tuple, expected["embedding"]))) == len(expected["row"]), "the vectors tell the rows apart"
    found = READERS[kind](location, table)
    assert sorted(found) == expected["row"] == [row for row in range(NUM_ROWS) if row not in {3, 40}]
    for row, name, vector in zip(expected["row"], expected["id"], expected["embedding"], strict=True):
        assert found[row][0] == name
        assert np.allclose(found[row][1], vector, atol=1e-6)


def test_a_connection_to_postgresql_that_is_lost_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, postgres: str
) -> None:
    import psycopg

    opens(monkeypatch)
    monkeypatch.setattr("bei_core.storage.errors._PAUSES_S", (0.0, 0.0, 0.0))
    publish, num_lost = Output.publish, list[int]()

    def losing(*arguments: Any) -> None:  # noqa: ANN401
        publish(*arguments)
        with psycopg.connect(postgres) as connection:
            others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            num_lost.append(len(connection.execute(f"SELECT pg_terminate_backend(pid) {others}").fetchall()))  # type: ignore[call-overload,unused-ignore]

    monkeypatch.setattr(Output, "publish", losing)
    run(source, tmp_path / "out", f"pgvector:{postgres}#lost")
    assert num_lost == [1] * 7
    assert sorted(of_pgvector(postgres, "lost")) == pq.read_table(tmp_path / "out")["row"].to_pylist()


class Answering(BaseHTTPRequestHandler):
    """A server whose answers have one status."""

    status: int

    def do_PUT(self) -> None:
        """Reads the body, and answers."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.send_header("retry-after", "1")
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.mark.parametrize(
    ("status", "may_pass"), [(0, True), (429, True), (502, True), (503, True), (400, False), (404, False)]
)
def test_only_errors_of_qdrant_that_may_pass_are_tried_again(status: int, may_pass: bool) -> None:
    from qdrant_client import QdrantClient, models

    from bei_core.jobs.sinks.qdrant import Qdrant

    server = HTTPServer(("127.0.0.1", 0), Answering)
    Answering.status = status
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if not status:  # no server
        server.shutdown()
        server.server_close()
    client = QdrantClient(url=f"http://127.0.0.1:{server.server_port}", check_compatibility=False)
    with pytest.raises(Exception) as failed:  # noqa: PT011 - of several classes
        client.upsert("docs", [models.PointStruct(id=1, vector=[1.0])])
    assert Qdrant.may_pass(object.__new__(Qdrant), failed.value) is may_pass
    server.shutdown()
    server.server_close()


def test_a_row_that_postgresql_cannot_hold_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, postgres: str
) -> None:
    import psycopg

    opens(monkeypatch)
    rows = [json.loads(line) for line in source.read_text().splitlines()][:3]
    rows[0]["id"] = "a\0b"
    rows[1]["tags"] = [{"n": 1, "name": "\0"}]
    (tmp_path / "nul.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(tmp_path / "nul.jsonl", tmp_path / "out", f"pgvector:{postgres}#nul")
    with psycopg.connect(postgres) as connection:
        assert connection.execute("SELECT row FROM nul").fetchall() == [(2,)]
    assert report.num_rejected == 2
    reasons = [
        json.loads(line)["reason"] for line in (tmp_path / "out" / "_rejected-00000.jsonl").read_text().splitlines()
    ]
    assert reasons == [f"column {name!r} has a NUL character, which PostgreSQL cannot hold" for name in ("id", "tags")]


def not_utf8(count: int, *rows: int) -> pa.Array:
    """A column of texts of which some are not UTF-8."""
    return pa.array([b"\xff\xfe" if row in rows else b"fine" for row in range(count)]).view(pa.string())


def rejected(output: Path) -> dict[int, str]:
    lines = (output / "_rejected-00000.jsonl").read_text().splitlines()
    return {row["row"]: row["reason"] for row in map(json.loads, lines)}


def test_rows_that_jsonb_cannot_hold_are_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres: str
) -> None:
    opens(monkeypatch)
    columns = {"text": WORDS[:4], "id": not_utf8(4, 2), "tags": [[1.5], [math.nan], [1.0], [-math.inf]]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out", f"pgvector:{postgres}#numbers")
    assert rejected(tmp_path / "out") == {
        1: "column 'tags' has NaN or infinity, which jsonb cannot hold",
        2: "column 'id' is not UTF-8",
        3: "column 'tags' has NaN or infinity, which jsonb cannot hold",
    }
    assert pq.read_table(tmp_path / "out")["row"].to_pylist() == [0]


@pytest.mark.parametrize("kind", ["qdrant", "milvus"])
def test_a_kept_text_that_is_not_utf8_or_too_long_is_a_rejected_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    opens(monkeypatch)
    long = ["x" * 70_000 if row == 1 else "x" for row in range(4)]
    pq.write_table(pa.table({"text": WORDS[:4], "id": not_utf8(4, 2), "tags": long}), tmp_path / "in.parquet")
    location = str(tmp_path / ("milvus.db" if kind == "milvus" else "qdrant"))
    run(tmp_path / "in.parquet", tmp_path / "out", f"{kind}:{location}#docs")
    reasons = {2: "column 'id' is not UTF-8"}
    if kind == "milvus":
        reasons[1] = "the kept columns have 70023 bytes as JSON; with Milvus, 60000 at most"
    assert rejected(tmp_path / "out") == reasons
    assert sorted(READERS[kind](location, "docs")) == [row for row in range(4) if row not in reasons]


def empty_part(width: int = 2) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "file": pa.array([], pa.string()),
        "row": pa.array([], pa.int64()),
        "embedding": pa.array([], pa.list_(pa.float32(), width)),
    }
    return pa.table(columns)


def test_workers_that_create_a_table_at_a_time_all_open_it(postgres: str) -> None:
    barrier = threading.Barrier(8)

    def opened(table: str) -> None:
        barrier.wait()
        open_sink(target_of(f"pgvector:{postgres}#{table}"), empty_part()).close()

    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            list(pool.map(opened, [f"race{number}"] * 8))


@pytest.mark.parametrize(
    ("kind", "method"), [("qdrant", "QdrantClient.collection_exists"), ("milvus", "MilvusClient.has_collection")]
)
def test_a_collection_that_another_worker_creates_meanwhile_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, method: str
) -> None:
    name, _, function = method.partition(".")
    client = getattr(importlib.import_module({"qdrant": "qdrant_client", "milvus": "pymilvus"}[kind]), name)
    exists, answers = getattr(client, function), [False]
    target = target_of(f"{kind}:{tmp_path / ('milvus.db' if kind == 'milvus' else 'qdrant')}#docs")
    open_sink(target, empty_part()).close()
    monkeypatch.setattr(client, function, lambda *given: answers.pop() if answers else exists(*given))
    open_sink(target, empty_part()).close()
    assert not answers


def test_an_index_of_faiss_has_the_rows_of_the_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    import faiss

    opens(monkeypatch)
    for _ in range(2):
        run(source, tmp_path / "out", f"faiss:{tmp_path}/index.faiss")
    vectors = np.array(pq.read_table(tmp_path / "out")["embedding"].to_pylist(), np.float32)
    index = faiss.read_index(str(tmp_path / "index.faiss"))
    assert np.array_equal(index.reconstruct_n(0, index.ntotal), vectors)
    assert index.search(vectors[17:18], 1)[1].tolist() == [[17]]


def test_a_folder_of_lancedb_that_a_worker_does_not_share_is_refused(tmp_path: Path) -> None:
    target = target_of(f"lancedb:{tmp_path}/lance")
    empty = empty_part()
    with pytest.raises(BeiError, match=r"lance#embeddings is not on this node .*does not share the folder"):
        open_sink(target, empty)
    assert not (tmp_path / "lance").exists()
    check_target(target, several_processes=True)
    open_sink(target, empty)


@pytest.mark.parametrize("sink", ["qdrant:http://127.0.0.1:9", "pgvector:postgresql://me:secret@127.0.0.1:9/x"])
def test_a_server_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, sink: str
) -> None:
    opens(monkeypatch)
    with pytest.raises(BeiError, match=r"127\.0\.0\.1:9.*failed: .*; start the job again to go on") as failed:
        run(source, tmp_path / "out", sink)
    assert "secret" not in str(failed.value)
    assert "\n" not in str(failed.value)
