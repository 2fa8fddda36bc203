"""Tensor parallelism (Shoeybi et al. 2019, Megatron-LM): a model divided among processes, each with its own GPU.

The server process is rank 0. It starts the other processes and sends every batch to them. Each process computes its
share of the linear layers and attention heads; `torch.distributed` adds up the results of all processes.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
import torch.distributed

from bei_core.engines.batch import Batch
from bei_core.engines.torch.batches import DeviceLostError, check_device
from bei_core.engines.torch.kernels.base import Rank
from bei_core.engines.torch.models.model import Model
from bei_core.errors import EngineUnavailableError

log = logging.getLogger(__name__)

# Loads the share of a rank onto a device.
Load = Callable[[torch.device, Rank], Model]

_STOP_S = 10.0  # how long to wait for a process to end, before it is killed
# How long a process waits for the others, to join and to add up results. Then it ends, because one of them has failed.
_TIMEOUT = timedelta(minutes=5)


class Workers:
    """The processes of all ranks but 0."""

    def __init__(self, load: Load, devices: list[torch.device]) -> None:
        """Starts a process for each device but the first, and makes this process rank 0 of their group.

        `load` must be picklable. Raises EngineUnavailableError if a process ends before it can join the group.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="bei-ranks-")  # where the processes find each other
        store, context = str(Path(self._folder.name) / "store"), multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        atexit.register(self._end)  # before multiprocessing waits for the processes, which ignore its signal to end
        for number, device in enumerate(devices[1:], 1):
            ours, theirs = context.Pipe()
            rank = Rank(number, len(devices))
            process = context.Process(target=work, args=(load, rank, device, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            list(self._replies())  # each is about to join
        except EngineUnavailableError:
            self._end()
            raise
        self.rank = Rank(0, len(devices))  # of this process
        if devices[0].type == "cuda":
            torch.cuda.set_device(devices[0])
        join(self.rank, devices[0], store)

    def await_loaded(self) -> None:
        """Waits until all processes have loaded their shares. Raises EngineUnavailableError if one cannot."""
        for reply in self._replies():
            if reply:
                raise EngineUnavailableError(f"a process of the divided model cannot load its share: {reply}")

    def _replies(self) -> Iterator[str]:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            wait([pipe, process.sentinel])
            try:
                yield str(pipe.recv())
            except (EOFError, ConnectionError):
                process.join(_STOP_S)
                raise EngineUnavailableError(
                    f"a process of the divided model ended with status {process.exitcode}; see the log"
                ) from None

    def send(self, batch: Batch, with_tokens: bool) -> None:
        """Sends a batch to all processes, which then compute it. Raises DeviceLostError if a process has ended."""
        try:
            for pipe in self._pipes:
                pipe.send((batch, with_tokens))
        except OSError as error:
            self.check(error)
            raise DeviceLostError("a process of the divided model no longer answers") from error

    def check(self, error: Exception) -> None:
        """Checks all processes and the GPU of this process after `error`. Raises DeviceLostError if one has failed.

        Too little memory is such a failure, too: the processes may have stopped at different layers, and would then add
        up results that do not belong together.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise DeviceLostError(f"a GPU of the divided model is full; set max_batch_tokens lower: {error}") from error
        for process in self._processes:
            process.join(0.1)  # it may be about to end
            if not process.is_alive():
                raise DeviceLostError(f"a process of the divided model ended with status {process.exitcode}") from error
        check_device(error)

    def close(self) -> None:
        """Ends the processes and leaves the group."""
        self._end()
        torch.distributed.destroy_process_group()

    def _end(self) -> None:
        atexit.unregister(self._end)
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_STOP_S)
            process.kill()
        self._folder.cleanup()


def join(rank: Rank, device: torch.device, store: str) -> None:
    """Makes this process a rank of the group; returns when all ranks have joined."""
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{store}",
        timeout=_TIMEOUT,
        rank=rank.number,
        world_size=rank.size,
    )


def work(load: Load, rank: Rank, device: torch.device, store: str, pipe: Connection) -> None:
    """Runs in the process of a rank other than 0: computes the batches of rank 0, until that closes the pipe or ends.

    Sends "" through the pipe before it joins the group, and "" or the error when it has loaded its share. It ignores
    signals to end, which a terminal or a supervisor may send to all processes: rank 0 still has requests to answer.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    pipe.send("")
    join(rank, device, store)
    try:
        model = load(device, rank)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    with suppress(EOFError, ConnectionError):
        while True:
            model.compute(*pipe.recv())
