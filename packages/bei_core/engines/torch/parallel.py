"""Tensor parallelism (Shoeybi et al. 2019, Megatron-LM): a model divided among processes, each with its own GPU.

The process of the server is rank 0. It starts the others and sends them every batch; each computes its share of the
linear layers and of the attention heads, and the sums of the shares are exchanged by `torch.distributed`.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from bei_core.engines.torch.batches import DeviceLostError, check_device
from bei_core.engines.torch.kernels.base import Rank
from bei_core.errors import EngineUnavailableError

log = logging.getLogger(__name__)

# What a process computes of a batch: (array of `flatten` on the host, number of tokens, longest, with token vectors).
Compute = Callable[[Tensor, int, int, bool], object]
# Loads a share of a model onto a device, and returns what computes with it.
Load = Callable[[Rank, torch.device], Compute]

_STOP_S = 10.0  # a process gets this long to end


class Workers:
    """The processes of the ranks from 1."""

    def __init__(self, load: Load, devices: list[torch.device]) -> None:
        """Starts them, and joins them as rank 0. `load` must be picklable. Raises EngineUnavailableError."""
        self._folder = tempfile.TemporaryDirectory(prefix="bei-ranks-")  # where the processes find each other
        store, context = str(Path(self._folder.name) / "store"), multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
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
        join(self.rank, devices[0], store)

    def await_loaded(self) -> None:
        """Waits until all have loaded their shares. Raises EngineUnavailableError."""
        for reply in self._replies():
            if reply:
                raise EngineUnavailableError(f"a process of the divided model cannot load its share: {reply}")

    def _replies(self) -> Iterator[str]:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            wait([pipe, process.sentinel])
            try:
                yield str(pipe.recv())
            except EOFError:
                process.join(_STOP_S)
                raise EngineUnavailableError(
                    f"a process of the divided model ended with status {process.exitcode}; see the log"
                ) from None

    def send(self, flat: Tensor, num_tokens: int, longest: int, with_tokens: bool) -> None:
        """Lets all compute a batch. Raises DeviceLostError if a process has ended."""
        try:
            for pipe in self._pipes:
                pipe.send((num_tokens, longest, with_tokens))
                pipe.send_bytes(flat.numpy().data)
        except OSError as error:
            self.check(error)
            raise DeviceLostError("a process of the divided model no longer answers") from error

    def check(self, error: Exception) -> None:
        """Raises DeviceLostError if a process has ended or the GPU of this process is lost."""
        for process in self._processes:
            process.join(0.1 if not isinstance(error, torch.OutOfMemoryError) else 0)  # it may be about to end
            if not process.is_alive():
                raise DeviceLostError(f"a process of the divided model ended with status {process.exitcode}") from error
        check_device(error)

    def close(self) -> None:
        """Ends the processes, and leaves the group."""
        self._end()
        torch.distributed.destroy_process_group()

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_STOP_S)
            process.terminate()
        self._folder.cleanup()


def join(rank: Rank, device: torch.device, store: str) -> None:
    """Makes this process a rank of the group; waits for the others."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank.number,
        world_size=rank.size,
    )


def work(load: Load, rank: Rank, device: torch.device, store: str, pipe: Connection) -> None:
    """A rank from 1: computes the batches that rank 0 sends, until rank 0 closes the pipe or ends."""
    pipe.send("")
    join(rank, device, store)
    try:
        compute = load(rank, device)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    with suppress(EOFError, ConnectionError):
        while True:
            num_tokens, longest, with_tokens = pipe.recv()
            flat = torch.frombuffer(bytearray(pipe.recv_bytes()), dtype=torch.int32)
            with suppress(torch.OutOfMemoryError):  # as in rank 0, which sends the halves of the batch
                compute(flat, num_tokens, longest, with_tokens)
