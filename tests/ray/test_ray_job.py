"""A job on a Ray cluster writes the bytes of the job of one process, also if workers, nodes or the driver end."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from bei_core.jobs.ray_data import PartWorker, check_nodes
from tests.fakes import SAFETY_S
from tests.golden.cases import GOLDEN
from tests.ray.local_cluster import LocalCluster, lines_with

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 2000
OPTIONS = JobOptions(keep=("id",), rows_per_part=20)
NUM_PARTS = NUM_ROWS // OPTIONS.rows_per_part
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


def num_parts(output: Path) -> int:
    return len(list(output.glob("part-*")))


@contextmanager
def during(output: Path, share: float, action: Callable[[], object]) -> Iterator[None]:
    """Does `action` on a thread when a share of the parts is there. Raises AssertionError if the block ends before."""
    ended = threading.Event()

    def wait() -> None:
        while num_parts(output) < share * NUM_PARTS:
            assert not ended.wait(0.01), "the job ended before"
        assert num_parts(output) < NUM_PARTS, "the job was done already"
        action()

    with ThreadPoolExecutor(1) as pool:
        acted = pool.submit(wait)
        try:
            yield
        finally:
            ended.set()
        acted.result()


def workers() -> set[int]:
    """The processes of the actors of this cluster."""
    ours = psutil.Process().children(recursive=True)
    found = set[int]()
    for process in ours:
        with suppress(psutil.Error):  # it has ended
            found |= {process.pid} if WORKER in " ".join(process.cmdline()) else set()
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + SAFETY_S
    while not condition():
        assert time.monotonic() < limit, "what the test waits for never happened"
        time.sleep(0.05)


def test_two_nodes_write_the_same_bytes(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings, expected: dict[str, bytes]
) -> None:
    report = embed(source, tmp_path / "out", settings=settings, options=OPTIONS, ray=RayOptions(ray_workers=2))
    assert contents(tmp_path / "out") == expected
    assert (report.num_rows, report.num_rejected) == (NUM_ROWS, 1)


@pytest.mark.parametrize("num_killed", [1, 2])
def test_a_worker_that_is_killed_is_replaced(
    cluster: LocalCluster,
    tmp_path: Path,
    source: Path,
    settings: Settings,
    expected: dict[str, bytes],
    num_killed: int,
) -> None:
    """If both are killed, nothing goes on unless Ray starts others."""
    killed, left = list[int](), set[int]()

    def kill() -> None:
        before = workers()
        assert len(before) == 2
        killed.extend(sorted(before)[:num_killed])
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(workers() - before) >= num_killed)
        left.update(workers())

    wait_until(lambda: not workers())  # of the test before
    with during(tmp_path / "out", 0.2, kill):
        embed(source, tmp_path / "out", settings=settings, options=OPTIONS, ray=RayOptions(ray_workers=2))
    assert len(killed) == num_killed
    assert left.isdisjoint(killed)
    assert contents(tmp_path / "out") == expected


def test_a_node_that_is_lost_does_not_stop_the_job(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings, expected: dict[str, bytes]
) -> None:
    lost = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    with during(tmp_path / "out", 0.2, lambda: cluster.remove_node(lost, allow_graceful=False)):
        embed(source, tmp_path / "out", settings=settings, options=OPTIONS, ray=RayOptions(ray_workers=2))
    assert lost not in cluster.list_all_nodes()
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes(timeout=SAFETY_S)
    assert contents(tmp_path / "out") == expected


def test_a_driver_that_is_killed_and_started_again_writes_the_same_bytes(
    cluster: LocalCluster, tmp_path: Path, source: Path, settings: Settings, expected: dict[str, bytes]
) -> None:
    output = tmp_path / "out"
    words = ["--model-id", str(settings.model_id), "--cache-dir", str(settings.cache_dir), "--output", str(output)]
    words += ["--keep", "id", "--rows-per-part", str(OPTIONS.rows_per_part)]
    words += ["--ray", cluster.address, "--ray-workers", "2"]
    command = [sys.executable, "-m", "bei_core.cli", "embed-dataset", str(source), *words]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: num_parts(output) >= 0.2 * NUM_PARTS or driver.poll() is not None)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    wait_until(lambda: not workers())  # they end with their driver
    num_before = num_parts(output)
    assert 0 < num_before < NUM_PARTS
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{num_before} parts were there" in done.stdout, done.stdout
    assert contents(output) == expected


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


def test_a_worker_that_no_node_can_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}])
    check_nodes(RayOptions(cpus_per_worker=2), may_grow=False)
    check_nodes(RayOptions(cpus_per_worker=1, gpus_per_worker=0.5), may_grow=False)
    said = r"no node has the 2 CPU and 0\.25 GPU of a worker \(at most 2 CPU and 1 GPU\); lower `cpus_per_worker`"
    with pytest.raises(ConfigError, match=said):
        check_nodes(RayOptions(cpus_per_worker=2, gpus_per_worker=0.25), may_grow=False)
    check_nodes(RayOptions(cpus_per_worker=64), may_grow=True)
    assert "no node has the 64 CPU" in caplog.text
    assert "the job waits for it" in caplog.text


def test_a_cluster_that_the_program_connected_to_is_not_refused_for_its_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(ray.data, "from_items", stop)
    with pytest.raises(KeyboardInterrupt):
        embed(source, tmp_path / "out", settings=settings, ray=RayOptions(ray="local"))
    assert "the job waits for it" in caplog.text


def test_the_reason_why_ray_does_not_connect_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, settings: Settings
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40\n\n    Python: 3.11\nMore.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    said = r"^cannot connect to Ray at auto: Version mismatch: The cluster was started with: Ray: 2\.40 Python: 3\.11$"
    with pytest.raises(ConfigError, match=said):
        embed(source, tmp_path / "out", settings=settings, ray=RayOptions(ray="auto"))
