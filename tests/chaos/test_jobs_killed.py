"""A bulk job that is killed again and again ends with the bytes of one that was left alone; all kinds of models."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.jobs import JobOptions, embed
from bei_core.jobs.options import Task
from bei_core.serving.service import Service
from bei_core.tasks import Embed, EmbedSparse, Text
from tests.chaos.test_cache_processes import ROOT, environment
from tests.golden import bge_m3
from tests.golden.cases import GOLDEN

NUM_KILLS = int(os.environ.get("BEI_TEST_KILLS", "6"))
NUM_ROWS = 600


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    rows = [{"id": index, "text": text, "query": "what"} for index, text in enumerate(texts("short", NUM_ROWS, 0))]
    rows[7]["text"] = rows[500]["text"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("num_kills", [1, pytest.param(NUM_KILLS, marks=pytest.mark.long)])
def test_killed_many_times_it_ends_with_the_same_bytes(tmp_path: Path, source: Path, num_kills: int) -> None:
    model = str(GOLDEN / "bert-cls-normalize")
    environ = environment(tmp_path / "cache")
    words = ["--model-id", model, "--keep", "id", "--rows-per-part", "10"]
    command = [sys.executable, "-m", "bei_core.cli", "embed-dataset", str(source), *words]

    def finished(output: Path) -> None:
        done = subprocess.run(
            [*command, "--output", str(output)], env=environ, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    finished(tmp_path / "whole")
    killed, rng, kills = tmp_path / "killed", random.Random(0), 0
    while kills < num_kills and not (killed / "_manifest.json").exists():
        process = subprocess.Popen(
            [*command, "--output", str(killed)], env=environ, cwd=ROOT, stderr=subprocess.DEVNULL
        )
        before = len(list(killed.glob("part-*"))) if killed.exists() else 0
        wanted = before + rng.randint(0, 4)
        while process.poll() is None and (not killed.exists() or len(list(killed.glob("part-*"))) < wanted):
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == num_kills
    finished(killed)
    assert contents(killed) == contents(tmp_path / "whole")
    assert pq.read_table(killed)["id"].to_pylist() == [index for index in range(NUM_ROWS) if index not in {7, 500}]


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
