"""A model divided among two processes gives the vectors of one: tensor parallelism on the CPU, by gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.build import plan_build
from bei_core.engines.cache import publish_engine
from bei_core.engines.manifest import read_manifest
from bei_core.engines.torch import build, parallel
from bei_core.engines.torch.batches import DeviceLostError
from bei_core.engines.torch.engine import Replicas, load
from bei_core.engines.torch.kernels.base import Rank
from bei_core.engines.torch.kernels.torch import Kernels, Linear
from bei_core.engines.torch.models.weights import Layer
from bei_core.errors import ConfigError, EngineUnavailableError, UnsupportedModelError
from bei_core.metrics import Metrics
from bei_core.models.spec import read_spec
from bei_core.serving.runner import Runner
from bei_core.tasks import Tokens
from tests.e2e.server import wait_until
from tests.fakes import SAFETY_S, Clock
from tests.golden.cases import CASES, CLASSIFICATION_CASES, GROUP_CASES, GROUP_CLASSIFICATION_CASES
from tests.golden.tolerance import F32, LOGITS_F32, compare, compare_logits
from tests.unit.engines.test_process import is_running

EVERY: tuple[Any, ...] = (*CASES, *GROUP_CASES, *CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)
NAMED = {case.name: case for case in EVERY}


# Among them are grouped queries, biases, norms of queries and keys, windows, a classifier, and layers that hold query,
# key and value, or gate and up.
DIVIDED = (
    "bert-cls-normalize",
    "llama-biased-mean-f16",
    "qwen3-embedding",
    "modernbert-plain-masked-lm",
    "gemma2-two-labels",
)
REFUSED = [
    ("mpnet-mean-normalize", "attention with relative positions cannot be divided among GPUs"),
    ("llama-linear-rope-weightedmean", "^1 attention heads cannot be divided among 2 GPUs"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    def make(name: str) -> Path:
        checkpoint = resolve(str(NAMED[name].folder))
        settings = Settings.load({"engine": "torch", "dtype": "float32"}, {"HOME": "/nonexistent"})
        if not (tmp_path / name).exists():
            publish_engine(tmp_path / name, plan_build(build, checkpoint, read_spec(checkpoint), settings)[1])
        return tmp_path / name

    return make


def opened(folder: Path, **options: Any) -> Any:
    return load(folder, read_spec(resolve(str(folder))), read_manifest(folder), dtype="auto", **options)


def tokens_of(case: Any) -> list[Tokens]:
    types = getattr(case, "type_ids", None) or [np.zeros_like(ids) for ids in case.ids]
    return [Tokens(*both) for both in zip(case.ids, types, strict=True)]


@pytest.fixture
def divided(folder: Any) -> Iterator[Any]:
    """Opens a model's engine divided among two processes."""
    engines: list[Any] = []

    def make(name: str) -> Any:
        engines.append(opened(folder(name), tensor_parallel=2))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def check(case: Any, rows: Any) -> None:
    if hasattr(case, "logits"):
        compare_logits(rows, case.logits, LOGITS_F32)
    else:
        compare(rows, case.raw, F32)


@pytest.mark.parametrize("name", DIVIDED)
def test_two_processes_give_the_rows_of_one(name: str, divided: Any) -> None:
    case, engine = NAMED[name], divided(name)
    tokens = tokens_of(case)
    check(case, engine.forward(Batch.pack(tokens)))
    check(case, np.concatenate([engine.forward(Batch.pack([item])) for item in tokens]))


def test_a_second_divided_model_is_refused_with_the_way_out(divided: Any) -> None:
    divided(DIVIDED[0])
    with pytest.raises(EngineUnavailableError, match="with engine_process, each model has its own"):
        divided(DIVIDED[1])


def test_token_vectors_of_two_processes_are_those_of_one(folder: Any, divided: Any) -> None:
    batch = Batch.pack(tokens_of(NAMED[DIVIDED[0]]))
    both = divided(DIVIDED[0])
    one = opened(folder(DIVIDED[0]))
    np.testing.assert_allclose(both.forward_tokens(batch)[1], one.forward_tokens(batch)[1], atol=2e-5)


def test_a_process_that_ends_makes_the_engine_broken(divided: Any) -> None:
    engine = divided(DIVIDED[0])
    batch = Batch.pack(tokens_of(NAMED[DIVIDED[0]]))
    engine.forward(batch)
    (process,) = engine._workers._processes
    process.kill()
    with pytest.raises(DeviceLostError, match="a process of the divided model ended with status -9"):
        engine.forward(batch)


def test_a_process_that_ends_is_noticed_while_a_gpu_waits_for_its_results(
    divided: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL's kernels wait for ever, and when the group is aborted they end with undefined results. gloo raises."""
    engine, is_aborted, is_waiting = divided(DIVIDED[0]), threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        is_waiting.set()
        assert is_aborted.wait(SAFETY_S)

    monkeypatch.setattr(torch.distributed, "all_reduce", wait)
    monkeypatch.setattr(parallel, "abort", is_aborted.set)
    (process,) = engine._workers._processes
    killer = threading.Thread(target=lambda: is_waiting.wait(SAFETY_S) and process.kill())
    killer.start()
    with pytest.raises(DeviceLostError, match="a process of the divided model ended with status -9"):
        engine.forward(Batch.pack(tokens_of(NAMED[DIVIDED[0]])))
    killer.join()


def test_the_group_of_the_installed_torch_can_be_aborted(divided: Any) -> None:
    divided(DIVIDED[0])
    parallel.abort()


def test_no_process_is_left_if_rank_0_is_killed(folder: Any) -> None:
    """Also one that does not notice it, because it waits for a GPU; here it is stopped."""
    program = (
        "import os, signal, sys, time; from pathlib import Path; from tests.gpu_path.test_parallel import opened;"
        "engine = opened(Path(sys.argv[1]), tensor_parallel=2); (process,) = engine._workers._processes;"
        "os.kill(process.pid, signal.SIGSTOP); print(process.pid, flush=True); time.sleep(1000)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, folder(DIVIDED[0])]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        pid = next(int(line) for line in server.stdout if line.strip().isdigit())  # before it, gloo may write lines
        server.kill()
    wait_until(lambda: not is_running(pid))


def test_processes_ignore_the_signals_of_a_terminal_and_a_supervisor(divided: Any) -> None:
    """Which may come to all processes, while the server still answers requests."""
    engine = divided(DIVIDED[0])
    batch = Batch.pack(tokens_of(NAMED[DIVIDED[0]]))
    expected = engine.forward(batch)
    (process,) = engine._workers._processes
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    np.testing.assert_allclose(engine.forward(batch), expected, atol=1e-6)
    assert process.poll() is None


FAILURES = {
    "a GPU of the divided model is full; set max_batch_tokens lower: no memory": torch.OutOfMemoryError("no memory"),
    "failed in the process of rank 0: CUBLAS_STATUS_EXECUTION_FAILED": RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"),
    "failed in the process of rank 0: index 9": IndexError("index 9"),
}


@pytest.mark.parametrize("told", FAILURES)
def test_any_error_in_a_batch_makes_a_divided_model_broken(
    told: str, divided: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stops at one layer, and another at a later one, would add up results of different layers."""
    engine = divided(DIVIDED[0])

    def fail(*_: Any) -> Any:
        raise FAILURES[told]

    monkeypatch.setattr(engine._model.transformer.layers[1], "forward", fail)
    with pytest.raises(DeviceLostError, match=told):
        engine.forward(Batch.pack(tokens_of(NAMED[DIVIDED[0]])))


def test_an_error_in_another_process_makes_a_divided_model_broken(divided: Any) -> None:
    engine = divided(DIVIDED[0])
    engine._workers.send("no batch", False)
    with pytest.raises(DeviceLostError, match="a process of the divided model ended with status 1; see the log"):
        engine.forward(Batch.pack(tokens_of(NAMED[DIVIDED[0]])))


@pytest.mark.parametrize(("name", "error"), REFUSED)
def test_a_model_that_cannot_be_divided_is_refused(name: str, error: str, folder: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=error):
        opened(folder(name), tensor_parallel=2)


def test_the_error_of_a_model_that_cannot_be_divided_names_its_heads(folder: Any) -> None:
    """Users know the number of heads from config.json, and not the rows of the joined linear layer."""
    with pytest.raises(UnsupportedModelError, match=r"^4 attention heads cannot be divided among 3 GPUs"):
        opened(folder(DIVIDED[0]), tensor_parallel=3)


def test_a_share_in_fp8_needs_sizes_that_fp8_supports() -> None:
    layer = Layer("layers.0.up", {name: torch.ones(()) for name in ("weight_scale", "input_scale")})
    layer["weight"] = torch.ones(48, 32).to(torch.float8_e4m3fn)
    linear = Linear(32, 48, "mlp", Kernels(torch.bfloat16, Rank(0, 2)), bias=False, split="out")
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.up in fp8 .* among 2 GPUs: .* \[24, 32\]"):
        linear.load_weights([layer])


def test_replicas_share_a_batch_and_keep_its_order(folder: Any) -> None:
    """Two on the CPU; `devices` are GPUs, so the engines are given here."""
    case, place = NAMED[DIVIDED[0]], folder(DIVIDED[0])
    engines = [opened(place) for _ in range(2)]
    both, tokens = Replicas(engines), tokens_of(case)
    check(case, both.forward(Batch.pack(tokens)))
    rows, vectors = both.forward_tokens(Batch.pack(tokens))
    check(case, rows)
    assert len(vectors) == sum(len(item) for item in tokens)
    check_one = both.forward(Batch.pack(tokens[:1]))
    np.testing.assert_allclose(check_one, rows[:1], atol=1e-6)
    assert (both.info.batch_tokens, both.info.num_replicas) == (2 * engines[0].info.batch_tokens, 2)
    both.close()


class FakeCopy:
    """A copy of a model on a GPU of its own, which takes 1 ms a token on a clock and always runs beside the other."""

    info = EngineInfo("torch", "gpu", "bf16", row_width=1, max_seq_len=8, batch_tokens=64, num_callers=2)

    def __init__(self, clock: Clock, both: threading.Barrier) -> None:
        self.clock, self.both, self.sizes = clock, both, list[int]()

    def compute(self, batch: Batch, *, with_tokens: bool) -> list[Any]:
        self.sizes.append(batch.num_tokens)
        if self.both.wait(SAFETY_S) == 0:
            self.clock.now += 0.001 * batch.num_tokens
        self.both.wait(SAFETY_S)
        return [(batch.input_ids[batch.cu_seqlens[:-1]].astype(np.float32)[:, None], None)]


async def test_the_server_measures_the_rate_of_all_copies_together() -> None:
    """So the expected wait is right although the runner sees one engine and runs one batch at a time."""
    clock, both = Clock(), threading.Barrier(2)
    copies = [FakeCopy(clock, both) for _ in range(2)]
    engine: Any = Replicas(copies)  # type: ignore[arg-type]
    runner = Runner(engine, Metrics(), budget=engine.info.batch_tokens, clock=clock)
    runner.start()
    texts = [Tokens(np.full(8, number, np.int32), np.zeros(8, np.int32)) for number in range(48)]
    ticket = await runner.submit(texts)
    assert ticket.rows[:, 0].tolist() == list(range(48))
    assert runner.close(SAFETY_S)
    assert [copy.sizes for copy in copies] == [[64, 64, 64]] * 2  # three batches of 128 tokens
    assert runner.admission.rate.tokens_per_s == pytest.approx(2000)


def test_devices_that_are_not_there_are_refused(folder: Any) -> None:
    place = folder(DIVIDED[0])
    with pytest.raises(EngineUnavailableError, match=r"torch finds no GPU: .*(NVIDIA driver|not compiled with CUDA)"):
        opened(place, devices=(0, 1))
    with pytest.raises(ConfigError, match="tensor_parallel_size is 3, but the number of devices is 2; give as many"):
        opened(place, devices=(0, 1), tensor_parallel=3)
