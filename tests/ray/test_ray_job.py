"""A job on a Ray cluster writes the bytes of the job of one process, also if workers and nodes are killed meanwhile."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import ray

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError
from bei_core.jobs import JobOptions, RayOptions, embed
from bei_core.jobs.inputs import open_input
from bei_core.jobs.output import Folder
from bei_core.jobs.ray_data import PartWorker
from tests.fakes import SAFETY_S
from tests.golden.cases import GOLDEN
from tests.ray.local_cluster import LocalCluster, lines_with

NUM_ROWS = 2000
OPTIONS = JobOptions(keep=("id",), rows_per_part=20)
WORKER = "ray::MapWorker"  # how Ray names the processes of the actors


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    rows = [{"id": index, "text": text} for index, text in enumerate(texts("short", NUM_ROWS, 0))]
    rows[11]["text"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    cache = tmp_path_factory.mktemp("cache")
    return Settings.load({"model_id": str(GOLDEN / "bert-cls-normalize"), "cache_dir": str(cache)}, {})


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, source: Path, settings: Settings) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("one") / "out"
    embed(source, output, settings=settings, options=OPTIONS)
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes with a processor each, besides the driver's, which has none."""
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes(timeout=SAFETY_S)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def during(output: Path, share: float, action: Callable[[], object]) -> threading.Thread:
    """Starts a thread that does `action` when a share of the parts is there."""

    def wait() -> None:
        while len(list(output.glob("part-*"))) < share * NUM_ROWS / OPTIONS.rows_per_part:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def kill_a_worker() -> None:
    workers = [each for each in psutil.process_iter(["name", "cmdline"]) if WORKER in " ".join(each.info["cmdline"])]
    os.kill(workers[0].pid, signal.SIGKILL)


def test_two_nodes_write_the_same_bytes(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings, expected: dict[str, bytes]
) -> None:
    report = embed(source, tmp_path / "out", settings=settings, options=OPTIONS, ray=RayOptions(ray_workers=2))
    assert contents(tmp_path / "out") == expected
    assert (report.num_rows, report.num_rejected) == (NUM_ROWS, 1)


def test_a_worker_that_is_killed_is_replaced(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings, expected: dict[str, bytes]
) -> None:
    killer = during(tmp_path / "out", 0.2, kill_a_worker)
    embed(source, tmp_path / "out", settings=settings, options=OPTIONS, ray=RayOptions(ray_workers=2))
    killer.join()
    assert contents(tmp_path / "out") == expected


def test_a_node_that_is_lost_does_not_stop_the_job(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings, expected: dict[str, bytes]
) -> None:
    lost = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    killer = during(tmp_path / "out", 0.2, lambda: cluster.remove_node(lost, allow_graceful=False))
    embed(source, tmp_path / "out", settings=settings, options=OPTIONS, ray=RayOptions(ray_workers=2))
    killer.join()
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes(timeout=SAFETY_S)
    assert contents(tmp_path / "out") == expected


def test_a_job_that_one_process_began_goes_on_with_ray(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings, expected: dict[str, bytes]
) -> None:
    embed(source, tmp_path / "out", settings=settings, options=OPTIONS)
    for name in ("part-00003.parquet", "part-00099.parquet", "_manifest.json"):
        (tmp_path / "out" / name).unlink()
    report = embed(source, tmp_path / "out", settings=settings, options=OPTIONS, ray=RayOptions(ray_workers=2))
    assert contents(tmp_path / "out") == expected
    assert (report.num_parts, report.num_parts_before) == (2, 98)


def test_relative_paths_are_those_of_the_process_that_starts_the_job(
    cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    settings: Settings,
    expected: dict[str, bytes],
) -> None:
    """The working folder of workers is that of `ray start`."""
    monkeypatch.chdir(source.parent)
    options = msgspec.structs.replace(settings, model_id=os.path.relpath(settings.model_id or ""))
    embed(source.name, "relative/out", settings=options, options=OPTIONS, ray=RayOptions(ray_workers=2))
    found = contents(source.parent / "relative" / "out")
    assert found.keys() == expected.keys()
    assert found["_manifest.json"] == expected["_manifest.json"]


def test_a_worker_that_does_not_share_the_folder_names_its_node(
    tmp_path: Path, source: Path, settings: Settings
) -> None:
    data = open_input(str(source), OPTIONS)
    (tmp_path / "out").mkdir()  # of another job, on this node
    worker = PartWorker(settings, OPTIONS, data, str(tmp_path / "out"))
    with Folder(str(tmp_path / "elsewhere")).locked():
        found = worker({"part": np.array([msgspec.json.encode(data.parts[0]).decode()], object)})
    error = pickle.loads(found["result"][0])
    assert str(error).startswith(f"{tmp_path}/out on this node ({socket.gethostname()}) is not the folder of the node")


def test_an_error_of_a_worker_is_that_of_the_job(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings
) -> None:
    options = JobOptions(job="rerank", query_column="text")
    settings = msgspec.structs.replace(settings, json_output=True)
    with pytest.raises(ConfigError, match="is a model of kind embedding; it can do"):
        embed(source, tmp_path / "out", settings=settings, options=options, ray=RayOptions())
    logged = [json.loads(line) for line in lines_with("the worker stops") if line.startswith("{")]
    assert [(line["level"], line["logger"]) for line in logged] == [("ERROR", "bei_core.jobs.ray_data")]
