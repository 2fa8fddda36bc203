"""A job writes each row once; stopped anywhere and started again, it writes the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from bei_core.cli import main as cli
from bei_core.errors import BeiError, ConfigError, DiskError
from bei_core.jobs import JobOptions, embed
from bei_core.jobs.compute import Worker
from bei_core.jobs.job import Job
from bei_core.jobs.output import Folder
from bei_core.jobs.report import Progress
from bei_core.models.modules import Classifier, Splade
from tests.fakes import WIDTH, FakeEngine
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.conftest import WORDS

LABELS = tuple(f"L{index}" for index in range(WIDTH))


def run(source: Path | str, output: Path | str, **options: Any) -> Any:  # noqa: ANN401
    options.setdefault("rows_per_part", 16)
    return embed(source, output, settings={"model_id": "owner/name"}, options=JobOptions(**options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(folder).to_pydict()
    return found


def test_each_row_has_its_id_and_its_own_vector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch)
    report = run(source, tmp_path / "out", keep=("id",))
    found = table(tmp_path / "out")
    assert found["id"] == [f"i{index}" for index in range(100)]
    assert found["row"] == list(range(100))
    assert {len(vector) for vector in found["embedding"]} == {WIDTH}
    assert len({tuple(vector) for vector in found["embedding"]}) == 100
    assert (report.num_rows, report.num_parts, report.num_rejected) == (100, 7, 0)


def test_vectors_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "a", rows_per_part=3)
    run(source, tmp_path / "b", rows_per_part=1000)
    assert table(tmp_path / "a")["embedding"] == table(tmp_path / "b")["embedding"]


def test_metadata_names_the_model_and_the_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out", output_dtype="int8")
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").metadata
    assert metadata[b"bei.model"] == b"owner/name"
    assert metadata[b"bei.revision"] == b"1" * 40
    assert metadata[b"bei.engine"] == b"0" * 32
    assert metadata[b"bei.compute_type"] == b"cpu+f32"
    assert metadata[b"bei.output_dtype"] == b"int8"


@pytest.mark.parametrize(
    ("owner", "stage"),
    [(Job, "prepare"), (Worker, "start"), (Worker, "finish"), (Job, "publish"), (Progress, "add")],
)
@pytest.mark.parametrize("at", range(7))
def test_a_job_that_is_stopped_and_started_again_writes_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, owner: type, stage: str, at: int
) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "whole", keep=("id",))
    function, others = getattr(owner, stage), threading.enumerate()
    count = 0

    def stopping(*args: Any) -> Any:  # noqa: ANN401
        nonlocal count
        count += 1
        if count == at + 1:
            raise KeyboardInterrupt
        return function(*args)

    with monkeypatch.context() as patched:
        patched.setattr(owner, stage, stopping)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "stopped", keep=("id",))
    assert not [thread.name for thread in threading.enumerate() if thread not in others]
    before = contents(tmp_path / "stopped")
    report = run(source, tmp_path / "stopped", keep=("id",))
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert report.num_parts_before == sum(name.startswith("part-") for name in before)


def test_a_job_that_is_done_computes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    engine = opens(monkeypatch)
    run(source, tmp_path / "out")
    num_batches = len(engine.batches)
    assert run(source, tmp_path / "out").num_rows == 0
    assert len(engine.batches) == num_batches


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_full_disk_is_one_error_and_the_job_goes_on_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, scheme: str
) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "whole")
    synced = os.fsync
    count = 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise OSError(28, "No space left on device")
        synced(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="No space left"):
            run(source, f"{scheme}{tmp_path}/out")
    assert not list((tmp_path / "out").glob(".*.tmp"))
    run(source, f"{scheme}{tmp_path}/out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_rows_without_a_text_are_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch)
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "the"}\n{"text": null}\n{"text": 5}\n{"text": ""}\n{oops\n{"text": "of"}\n')
    report = run(path, tmp_path / "out", rows_per_part=4)
    names = sorted(path.name for path in (tmp_path / "out").glob("_rejected*"))
    found = [json.loads(line) for name in names for line in (tmp_path / "out" / name).read_text().splitlines()]
    assert [(row["row"], row["reason"].partition(":")[0]) for row in found] == [
        (1, "the text is null"),
        (2, "not a text but a value of type int"),
        (3, "the text is empty"),
        (4, "not JSON"),
    ]
    assert {row["file"] for row in found} == {str(path)}
    assert table(tmp_path / "out")["row"] == [0, 5]
    assert report.num_rejected == 4


def test_only_the_texts_that_the_engine_fails_on_are_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    engine: FakeEngine = opens(monkeypatch)
    run(source, tmp_path / "whole")
    by_row = dict(zip(range(100), table(tmp_path / "whole")["embedding"], strict=True))
    engine.raises_on, engine.nan_on = frozenset([178]), frozenset([184])  # the ids of "the" and "and"
    bad = {row for row in range(100) if {row % 12, row // 12} & {0, 2}}
    report = run(source, tmp_path / "out")
    found = table(tmp_path / "out")
    assert report.num_rejected == len(bad)
    assert found["row"] == [row for row in range(100) if row not in bad]
    assert all(vector == by_row[row] for row, vector in zip(found["row"], found["embedding"], strict=True))


def test_equal_texts_of_a_part_are_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = ["the", "and the", "the", "and", "and the", "a", "the"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    engine = opens(monkeypatch)
    engine.nan_on = frozenset([184])  # the id of "and"
    report = run(source, tmp_path / "out")
    assert len(engine.seen) == len({tuple(ids) for ids in engine.seen}) == 4
    found = table(tmp_path / "out")
    assert found["row"] == [0, 2, 5, 6]
    assert found["embedding"][0] == found["embedding"][1] == found["embedding"][3] != found["embedding"][2]
    assert report.num_rejected == 3
    assert report.num_padded >= report.num_tokens


@pytest.mark.parametrize("weighs_terms", [False, True])
@pytest.mark.parametrize(
    ("job", "chunk"), [("embed", True), ("sparse", False), ("sparse", True), ("tokens", False)], ids=str
)
def test_equal_texts_and_chunks_have_the_output_of_each_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str, chunk: bool, weighs_terms: bool
) -> None:
    engine = opens(monkeypatch, *([Splade()] if job == "sparse" else []))
    engine.info = dataclasses.replace(engine.info, weighs_terms=weighs_terms)
    engine.raises_on = frozenset([228])  # the id of "is"
    repeating = " ".join(WORDS[:6] * 4)  # with other offsets, its chunks of 6 words are equal
    texts = [repeating, "the", "of the", "is", "the", repeating, "is", "of the", "the of"]
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    options = {"job": job, "chunk": chunk, **({"chunk_tokens": 8} if chunk else {})}
    report = run(tmp_path / "in.jsonl", tmp_path / "alone", rows_per_part=1, **options)
    assert run(tmp_path / "in.jsonl", tmp_path / "out", **options).num_rejected == report.num_rejected == 2
    found = table(tmp_path / "out")
    assert found == table(tmp_path / "alone")
    assert len(set(map(tuple, engine.seen))) < len(found["row"])


def test_an_engine_that_fails_on_everything_ends_the_job_and_no_row_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    engine = opens(monkeypatch)
    run(source, tmp_path / "whole")
    engine.num_failures = 10_000
    with pytest.raises(BeiError, match="the engine fails on every text"):
        run(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))
    engine.num_failures = 0
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_rejected_rows_of_a_part_that_was_not_published_do_not_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    engine = opens(monkeypatch)
    run(source, tmp_path / "whole")
    engine.raises_on = frozenset([178])
    run(source, tmp_path / "out")
    for path in (tmp_path / "out").glob("part-*"):
        path.unlink()
    engine.raises_on = frozenset()
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("column", "options"), [("row", {}), ("embedding", {}), ("chunk", {"chunk": True}), ("vectors", {"job": "tokens"})]
)
def test_a_kept_column_with_the_name_of_an_output_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, column: str, options: dict[str, Any]
) -> None:
    opens(monkeypatch)
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "the", column: "mine"}))
    with pytest.raises(ConfigError, match=f"`keep` has {column}, which the job writes itself; rename the column"):
        run(tmp_path / "in.jsonl", tmp_path / "out", keep=(column,), **options)


@pytest.mark.parametrize(
    ("dtype", "width", "numpy_type"),
    [("float32", WIDTH, np.float32), ("float16", WIDTH, np.float16), ("int8", WIDTH, np.int8), ("bit", 1, np.uint8)],
)
def test_types_of_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, dtype: str, width: int, numpy_type: type
) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out", output_dtype=dtype)
    column = pq.read_table(tmp_path / "out")["embedding"].combine_chunks()
    assert column.type.list_size == width
    assert column.flatten().to_numpy().dtype == numpy_type


def test_fewer_dimensions_are_scaled_to_length_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out", dimensions=3)
    rows = np.array(table(tmp_path / "out")["embedding"])
    assert rows.shape == (100, 3)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


def test_a_long_text_becomes_a_row_for_each_chunk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch)
    text = " ".join(WORDS * 4)
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "the"}) + "\n")
    run(tmp_path / "in.jsonl", tmp_path / "out", chunk=True, chunk_tokens=20)
    found = table(tmp_path / "out")
    count = found["row"].count(0)
    assert count > 2
    assert found["row"] == [0] * count + [1]
    assert found["chunk"] == [*range(count), 0]
    *spans, last = zip(found["start"], found["end"], strict=True)
    assert [index for start, end in spans for index in range(start, end) if text[index] != " "] == [
        index for index, character in enumerate(text) if character != " "
    ]
    assert last == (0, 3)


def test_sparse_vectors_have_a_row_for_each_chunk_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch, Splade())
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": " ".join(WORDS * 4)}) + "\n")
    run(tmp_path / "in.jsonl", tmp_path / "out", job="sparse", chunk=True, chunk_tokens=20)
    found = table(tmp_path / "out")
    assert found["chunk"] == [*range(len(found["row"]))]
    assert len(found["indices"]) > 2


def test_a_classifier_writes_labels_and_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch, Classifier(LABELS, "softmax"))
    run(source, tmp_path / "out")
    found = table(tmp_path / "out")
    scores = np.array(found["scores"])
    assert np.allclose(scores.sum(axis=1), 1)
    assert found["label"] == [LABELS[index] for index in scores.argmax(axis=1)]
    assert np.allclose(found["score"], scores.max(axis=1))


def test_a_reranker_of_two_labels_has_the_score_that_the_server_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    engine = opens(monkeypatch, Classifier(("no", "yes"), "softmax"))
    engine.info = dataclasses.replace(engine.info, row_width=2)
    monkeypatch.setattr(
        engine, "forward", lambda batch: np.tile(np.array([1, 3], np.float32), (len(batch.cu_seqlens) - 1, 1))
    )
    settings = {"model_id": "owner/name", "rerank_template": "{query} {document}"}
    options = JobOptions(job="rerank", query_column="id")
    embed(source, tmp_path / "out", settings=settings, options=options)
    assert np.allclose(table(tmp_path / "out")["score"], 1 / (1 + np.exp(-2.0))), "the sigmoid of the difference"
    (tmp_path / "out" / "part-00000.parquet").unlink()
    settings["rerank_template"] = "{document} {query}"
    with pytest.raises(ConfigError, match=r'its `options` was {"rerank_template":"{query} {document}"}, not'):
        embed(source, tmp_path / "out", settings=settings, options=options)


@pytest.mark.parametrize("job", ["embed", "tokens", "classify"])
def test_a_part_without_a_text_has_the_columns_and_no_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str
) -> None:
    opens(monkeypatch, *([Classifier(LABELS, "softmax")] if job == "classify" else []))
    (tmp_path / "in.jsonl").write_text('{"text": "the"}\n{"text": null}\n')
    run(tmp_path / "in.jsonl", tmp_path / "out", rows_per_part=1, job=job)
    full, empty = (pq.read_table(tmp_path / "out" / f"part-0000{index}.parquet") for index in (0, 1))
    assert (len(full), len(empty)) == (1, 0)
    assert empty.schema.equals(full.schema)


def test_vectors_of_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out", job="tokens")
    found = table(tmp_path / "out")["vectors"]
    assert all(len(vector) == 2 for vectors in found for vector in vectors)
    assert min(map(len, found)) >= 4


def test_a_part_is_published_after_its_rejected_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch)
    (tmp_path / "in.jsonl").write_text('{"text": "the"}\n{"text": null}\n')
    published = list[str]()
    publish = Folder.publish

    def noting(folder: Folder, name: str, content: bytes) -> None:
        published.append(name)
        publish(folder, name, content)

    monkeypatch.setattr(Folder, "publish", noting)
    run(tmp_path / "in.jsonl", tmp_path / "out")
    assert published == ["_job.json", "_rejected-00000.jsonl", "part-00000.parquet", "_manifest.json"]


def command(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["embed-dataset", *words, "--model-id", "owner/name"], env={"BEI_MODELS": ""})


def test_the_command_prints_what_was_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch)
    words = (str(source), "--output", str(tmp_path / "out"), "--keep", "id", "--rows-per-part", "50")
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("100 rows in 2 parts, 0 rejected; ")
    assert "2 parts were there" in command(*words).stdout


def test_options_of_workers_are_refused_without_ray(tmp_path: Path) -> None:
    result = command("in.csv", "--output", str(tmp_path / "out"), "--ray-workers", "3", "--cpus-per-worker", "2")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "without --ray a job has no workers; leave out cpus_per_worker, ray_workers"
