"""Tensor parallelism (Shoeybi et al. 2019, Megatron-LM): a model divided among processes, each with its own GPU.

The server process is rank 0. It starts the other processes and sends every batch to them. Each process computes its
share of the linear layers and attention heads; `torch.distributed` adds up the results of all processes.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
import torch.distributed

from bei_core.engines.batch import Batch
from bei_core.engines.process import start_process
from bei_core.engines.torch.batches import DeviceLostError
from bei_core.engines.torch.kernels.base import Rank
from bei_core.engines.torch.models.model import Model
from bei_core.errors import EngineUnavailableError

log = logging.getLogger(__name__)

# Loads the share of a rank onto a device.
Load = Callable[[torch.device, Rank], Model]

_END_S = 1.0  # how long a process may take to end, after which the error of another one says more
# How long a process waits for the others, to join and to add up results. Then it ends, because one of them has failed.
_TIMEOUT = timedelta(minutes=5)


class Workers:
    """The processes of all ranks but 0. They end with this process, also if they hang."""

    def __init__(self, load: Load, devices: Sequence[torch.device]) -> None:
        """Starts a process for each device but the first, and makes this process rank 0 of their group.

        `load` must be picklable. Raises EngineUnavailableError if a process ends before it can join the group, and if
        this process is in the group of another model: torch has one group in a process.
        """
        if torch.distributed.is_initialized():
            raise EngineUnavailableError(
                "a process can have one model that is divided among GPUs; with engine_process, each model has its own"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="bei-ranks-")  # where the processes find each other
        store = str(Path(self._folder.name) / "store")
        ranks = [Rank(number, len(devices)) for number in range(len(devices))]
        self.rank = ranks[0]  # of this process
        self._runs = [partial(work, load, *each, store) for each in zip(ranks[1:], devices[1:], strict=True)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        self._is_loaded, self._is_lost, self._is_closing = threading.Event(), threading.Event(), threading.Event()
        started: Future[None] = Future()
        self._watcher = threading.Thread(target=self._watch, args=(started,), name="bei-ranks", daemon=True)
        self._watcher.start()
        try:
            started.result()
            self._read_replies()  # each is about to join
            use(devices[0])
            join(self.rank, devices[0], store)
        except BaseException:
            self._end()
            raise

    def await_loaded(self) -> None:
        """Waits until all processes have loaded their shares. Raises EngineUnavailableError if one cannot."""
        self._read_replies()
        self._is_loaded.set()

    def _read_replies(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                reply = pipe.recv()
            except (EOFError, ConnectionError):
                raise EngineUnavailableError(
                    f"a process of the divided model ended with status {process.wait()}; see the log"
                ) from None
            if reply:
                raise EngineUnavailableError(f"a process of the divided model cannot load its share: {reply}")

    def _watch(self, started: Future[None]) -> None:
        """Starts the processes, and aborts the group when one of them ends. Then no process waits for its results.

        Without that, NCCL would wait for the results of an ended process until its time limit. One thread does both,
        because Linux kills a process of `start_process` at the end of the thread that started it.
        """
        try:
            for run in self._runs:
                process, pipe = start_process(run)
                self._processes.append(process)
                self._pipes.append(pipe)
        except EngineUnavailableError as error:
            return started.set_exception(error)
        started.set_result(None)
        self._is_loaded.wait()
        wait(self._pipes)  # at its end, because a process sends nothing after it has loaded its share
        if not self._is_closing.is_set():
            self._is_lost.set()
            abort()
        self._is_closing.wait()
        return None

    def send(self, batch: Batch, with_tokens: bool) -> None:
        """Sends a batch to all processes, which then compute it. Call it within `errors_are_fatal`."""
        for pipe in self._pipes:
            pipe.send((batch, with_tokens))

    @contextmanager
    def errors_are_fatal(self) -> Iterator[None]:
        """Raises DeviceLostError for every error in the block, and at its end if a process has ended.

        After an error the processes may be at different layers, and would add up results that do not belong together.
        """
        try:
            yield
        except Exception as error:
            raise self._lost(error) from error
        if self._is_lost.is_set():
            raise self._lost(None)

    def _lost(self, error: Exception | None) -> DeviceLostError:
        """Returns the error that says which process has failed, and how; `error` is that of this process."""
        for ended in wait(self._pipes, _END_S):
            status = next(each for pipe, each in zip(self._pipes, self._processes, strict=True) if pipe is ended).wait()
            return DeviceLostError(f"a process of the divided model ended with status {status}; see the log")
        if isinstance(error, torch.OutOfMemoryError):
            return DeviceLostError(f"a GPU of the divided model is full; set max_batch_tokens lower: {error}")
        return DeviceLostError(f"a batch of the divided model failed in the process of rank 0: {error}")

    def close(self) -> None:
        """Ends the processes and leaves the group, first by `abort`, because NCCL may wait for the other processes."""
        self._end()
        abort()
        torch.distributed.destroy_process_group()

    def _end(self) -> None:
        self._is_closing.set()
        for process in self._processes:
            process.kill()
        self._is_loaded.set()
        self._watcher.join()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.wait()
            pipe.close()
        self._folder.cleanup()


def use(device: torch.device) -> None:
    """Makes a GPU the current one of this thread."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def join(rank: Rank, device: torch.device, store: str) -> None:
    """Makes this process a rank of the group; returns when all ranks have joined."""
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{store}",
        timeout=_TIMEOUT,
        rank=rank.number,
        world_size=rank.size,
    )


def abort() -> None:
    """Ends what this process and its GPU wait for in the group; old versions of torch cannot, and wait for _TIMEOUT."""
    if hasattr(torch.distributed.ProcessGroup, "abort"):
        torch.distributed.group.WORLD.abort()


def work(load: Load, rank: Rank, device: torch.device, store: str, pipe: Connection) -> None:
    """Runs in the process of a rank other than 0: computes the batches of rank 0, until that closes the pipe or ends.

    Sends "" through the pipe before it joins the group, and "" or the error when it has loaded its share. An error in a
    batch ends the process.
    """
    use(device)
    pipe.send("")
    join(rank, device, store)
    try:
        model = load(device, rank)
    except Exception as error:
        return pipe.send(f"{type(error).__name__}: {error}")
    pipe.send("")
    while True:
        model.compute(*pipe.recv())
