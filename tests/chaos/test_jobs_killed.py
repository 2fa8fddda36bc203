"""A bulk job that is killed again and again, or whose disk is full, ends with the bytes of one that was left alone.

And all kinds of models.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.errors import DiskError
from bei_core.jobs import JobOptions, embed
from bei_core.jobs.options import Task
from bei_core.serving.service import Service
from bei_core.tasks import Embed, EmbedSparse, Text
from tests.chaos.job_process import contents
from tests.chaos.test_cache_processes import ROOT, environment
from tests.disks import CAPACITY, FULL, limited, small_disk
from tests.fakes import SAFETY_S
from tests.golden import bge_m3
from tests.golden.cases import GOLDEN
from tests.unit.cli.fake_model import opens

NUM_ROWS = 600


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    rows = [{"id": index, "text": text, "query": "what"} for index, text in enumerate(texts("short", NUM_ROWS, 0))]
    rows[7]["text"] = rows[500]["text"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path, source: Path, num_kills: int) -> None:
    environ = environment(tmp_path / "cache", BEI_MODEL_ID=str(GOLDEN / "bert-cls-normalize"))
    output = tmp_path / "output"
    command = [sys.executable, "-m", "tests.chaos.job_process", "1", str(num_kills), str(source), str(output)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=3 * SAFETY_S)
    assert done.returncode == 0, done.stdout + done.stderr
    num_parts = [int(found) for found in re.findall(r"^killed with (\d+) parts$", done.stdout, re.MULTILINE)]
    assert len(num_parts) == num_kills, done.stdout
    assert any(0 < number < NUM_ROWS / 10 for number in num_parts), "none of them came while parts were written"
    assert pq.read_table(output)["id"].to_pylist() == [index for index in range(NUM_ROWS) if index not in {7, 500}]


@pytest.mark.parametrize("kind", ["a small disk", "a limit"])
def test_a_job_goes_on_after_its_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The second part is larger than the disk. When the output is on a larger disk, the job ends there."""
    opens(monkeypatch)
    source, random_ = tmp_path / "in.jsonl", random.Random(0)
    rows = [{"text": "the", "id": random_.randbytes(20 if index < 8 else CAPACITY // 4).hex()} for index in range(16)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings, options = {"model_id": "owner/name"}, JobOptions(keep=("id",), rows_per_part=8)
    embed(source, tmp_path / "whole", settings=settings, options=options)
    with small_disk(tmp_path / "disk") if kind == "a small disk" else limited():
        output = tmp_path / "disk" / "output"
        with pytest.raises(DiskError, match=f"{output}.*{FULL}"):
            embed(source, output, settings=settings, options=options)
        names = {path.name for path in output.iterdir()}
        shutil.copytree(output, tmp_path / "larger")
    assert "part-00000.parquet" in names
    assert not [name for name in names if "00001" in name or name.endswith(".tmp")]
    report = embed(source, tmp_path / "larger", settings=settings, options=options)
    assert (report.num_parts_before, report.num_parts) == (1, 1)
    assert contents(tmp_path / "larger") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("model", "query_column", "columns"),
    [
        ("bert-cls-normalize", None, ["embedding"]),
        ("roberta-rerank-pooler", "query", ["score"]),
        ("qwen3-yes-no-tied", "query", ["score"]),  # by a template of its own
        ("camembert-sentiment", None, ["label", "score", "scores"]),
        ("splade-distilbert-modules", None, ["indices", "values"]),
        ("colbert-v2", None, ["vectors"]),
    ],
)
def test_every_kind_of_model_writes_its_columns(
    tmp_path: Path, source: Path, model: str, query_column: str | None, columns: list[str]
) -> None:
    flags = {"model_id": str(GOLDEN / model), "rerank_template": "qwen3-reranker" if "yes-no" in model else "none"}
    settings = Settings.load(flags, environment(tmp_path / "cache"))
    options = JobOptions(query_column=query_column, keep=("id",), rows_per_part=250)
    report = embed(source, tmp_path / "out", settings=settings, options=options)
    found = pq.read_table(tmp_path / "out")
    assert found.column_names == ["file", "row", "id", *columns]
    assert (len(found), report.num_rejected) == (NUM_ROWS - 2, 2)


@pytest.mark.parametrize(("job", "column"), [("embed", "embedding"), ("sparse", "indices"), ("tokens", "vectors")])
def test_each_output_of_bge_m3(tmp_path: Path, source: Path, job: Task, column: str) -> None:
    settings = Settings.load({"model_id": str(bge_m3.write(tmp_path / "m3"))}, environment(tmp_path / "cache"))
    report = embed(source, tmp_path / "out", settings=settings, options=JobOptions(job=job))
    found = pq.read_table(tmp_path / "out")
    assert (len(found), report.num_rejected) == (NUM_ROWS - 2, 2)
    assert min(map(len, found[column].to_pylist())) > 0


@pytest.mark.parametrize("model", ["bert-cls-normalize", "splade-distilbert-modules"])
def test_the_numbers_are_those_that_the_server_gives(tmp_path: Path, source: Path, model: str) -> None:
    flags = {"model_id": str(GOLDEN / model), "dtype": "float32"}  # in bf16, other batches give other roundings
    settings = Settings.load(flags, environment(tmp_path / "cache"))
    embed(source, tmp_path / "out", settings=settings)
    found = pq.read_table(tmp_path / "out").to_pydict()
    inputs: list[Text] = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    some = found["row"][::60]
    service = Service.open(settings)
    try:
        task: Any = (Embed if model.startswith("bert") else EmbedSparse)([inputs[row] for row in some])
        served = asyncio.run(service.run(task)).rows
    finally:
        service.close()
    places = [found["row"].index(row) for row in some]
    if model.startswith("bert"):
        assert np.allclose([found["embedding"][place] for place in places], served, atol=1e-6)
        return
    for place, sparse in zip(places, served, strict=True):
        assert found["indices"][place] == sparse.indices.tolist()
        assert np.allclose(found["values"][place], sparse.values, atol=1e-5)
