"""The CPU engine: runs a compiled OpenVINO graph on packed rows."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino

from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.openvino.changes import change_for
from bei_core.engines.openvino.compiled import NUM_CACHED_KERNELS, Array, Graphs, Outputs, at_low_priority, core
from bei_core.engines.openvino.compiled_cache import CompiledCache
from bei_core.engines.openvino.graph import ROWS, TOKENS
from bei_core.engines.openvino.lone import MAX_LENGTH, lengths_for, with_lone_graphs
from bei_core.engines.openvino.stored import drop_mapped_pages
from bei_core.errors import EngineCorruptError, EngineUnavailableError
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Tokens

log = logging.getLogger(__name__)

MODEL = "model.xml"  # beside model.bin: OpenVINO's own format, for any processor

# Of a full batch. With small models, larger batches give no more throughput (docs/decisions/004-packed-rows.md).
BATCH_TOKENS = 1024

# Under a long line, where a text waits for several batches. These give some percent more with bf16 on one stream, and
# with models of real size, whose weights take long to read (docs/decisions/041-batches-under-a-long-line.md).
MOST_BATCH_TOKENS = 2 * BATCH_TOKENS

# A model with rows as wide as a vocabulary (SPLADE) computes that many logits per token: smaller batches save memory.
_WIDE_BATCH_TOKENS = 256

# A job has at most so many streams: with many processors, its parts have too few batches for a stream on each of them,
# and each stream takes memory for a batch.
_MAX_STREAMS = 8

# After so many batches of one text that is short enough, graphs are compiled for texts of such lengths. Those of the
# warm-up and of health checks do not count: a server without requests would compile graphs for their lengths.
_LONE_TEXTS = 100

# A batch of several texts takes back so many lone ones. So on a busy server, where less than three quarters of the
# batches are lone texts, nothing is compiled: that would slow down its requests, for graphs that few of them use.
_TAKEN_BACK = 3

_TWO_TEXTS = Batch.pack([Tokens(np.zeros(n, np.int32), np.zeros(n, np.int32)) for n in (1, 16)])

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def precision_for(dtype: str) -> str:
    """The precision ("f32" or "bf16") for a `dtype` setting; `auto` gives bf16 if the processor has it, else f32.

    For `int8` it is the precision of the layers that are not quantised. Raises EngineUnavailableError for a dtype that
    this processor or this engine does not support.
    """
    has_bf16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = ("bf16" if has_bf16 else "f32") if dtype in {"auto", "int8"} else _PRECISIONS.get(dtype)
    if precision is None or (precision == "bf16" and not has_bf16):
        offered = "auto, int8, float32" + (", bfloat16" if has_bf16 else "")
        raise EngineUnavailableError(
            f"the CPU engine does not compute in {dtype} on this processor; it offers {offered}"
        )
    return precision


def compile_properties(precision: str, num_streams: int = 1) -> dict[str, object]:
    """Settings for OpenVINO: `num_streams` batches run at a time, each on its share of all processors."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": num_streams,
        "INFERENCE_NUM_THREADS": usable_cpus(),
        "ENABLE_CPU_PINNING": False,  # the event loop needs a processor, too
        "CACHE_MODE": "OPTIMIZE_SIZE",  # of an exported model: weights stay in model.bin
        "CPU_RUNTIME_CACHE_CAPACITY": NUM_CACHED_KERNELS,
        # With weights in 8 or 4 bits and f32, the plugin would also round the inputs of linear layers to 8 bits, on
        # processors with dot products of int8 only: the quality would not be what was measured on another one.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def usable_cpus() -> int:
    """Number of processors that this process may use: those of its affinity, at most its cgroup's quota.

    Also at most OMP_NUM_THREADS, which Ray sets to the processors that it has reserved for a worker.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads):
        allowed = min(allowed, int(threads))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed


class _LastBatch(threading.local):
    """What is known of a thread's last batch."""

    padding_share = 0.0
    num_shared = 0


class OpenVinoEngine:
    """A model on the CPU, compiled from a file or from a graph.

    The weights of a file stay mapped, so several processes share the memory of all weights that are not packed for the
    kernels. If `quantised`, linear layers compute in int8 and all other operations in `precision`. On a processor
    without VNNI, these layers become convolutions; a graph that was passed in is changed in place. When most batches
    are short lone texts, an engine from a file compiles graphs for them (`engines/openvino/lone.py`). With `manifest`,
    that of the file's folder, the compiled model is stored for the next start.

    With several streams, as many threads may call the engine at a time, and it compiles no graphs for lone texts.
    """

    def __init__(
        self,
        model: Path | openvino.Model,
        spec: ModelSpec,
        precision: str,
        *,
        quantised: bool = False,
        manifest: Manifest | None = None,
        num_streams: int = 1,
    ) -> None:
        self._model, self._quantised = model, quantised
        self._properties = compile_properties(precision, num_streams)
        self._pad_id = int(spec.config.get("pad_token_id") or 0)
        self._loaded = self._stamps()
        compiled = self._open(manifest)
        graphs = [Graphs(compiled, self._pad_id) for _ in range(num_streams)]
        self._idle: SimpleQueue[Graphs] = SimpleQueue()  # those that run no batch
        self._last = _LastBatch()
        self._lone_lengths: list[int] = []  # tokens of the lone texts that count
        self._preparing: threading.Thread | None = None
        self.info = EngineInfo(
            name="openvino",
            device="cpu",
            precision="int8" if quantised else precision,
            row_width=graphs[0].row_width,
            max_seq_len=spec.max_seq_len,
            batch_tokens=_WIDE_BATCH_TOKENS if graphs[0].is_wide else BATCH_TOKENS,
            token_width=graphs[0].token_width - (spec.bge_m3 is not None),
            shares_prefixes=graphs[0].shares_prefixes,
            weighs_terms=spec.bge_m3 is not None,
            num_callers=num_streams,
            most_batch_tokens=0 if graphs[0].is_wide else MOST_BATCH_TOKENS,
        )
        if isinstance(model, Path):
            for each in graphs[manifest is not None :]:  # with a manifest, the probe was the first batch
                each.infer(_TWO_TEXTS, ROWS)  # the first one packs the weights
            drop_mapped_pages(model.with_suffix(".bin"))
        for each in graphs:
            self._idle.put(each)

    def forward(self, batch: Batch) -> Array:
        """f32[B, D]; see `Engine.forward`."""
        return self._infer(batch, ROWS).rows

    def forward_tokens(self, batch: Batch) -> tuple[Array, Array]:
        """f32[B, D] and f32[T, E]; see `Engine.forward_tokens`."""
        output = self._infer(batch, TOKENS)
        return output.rows, output.tokens

    def _infer(self, batch: Batch, wanted: str) -> Outputs:
        idle = self._idle
        graphs = idle.get()
        try:
            outputs = graphs.infer(batch, wanted)
        finally:
            idle.put(graphs)
        self._last.padding_share, self._last.num_shared = outputs.padding_share, outputs.num_shared
        if len(self._lone_lengths) < _LONE_TEXTS:
            self._count(batch)
        return outputs

    def _count(self, batch: Batch) -> None:
        """Counts a user's batch: short lone texts against others. The last one that counts starts the compilation."""
        if self.info.num_callers > 1 or not self._loaded:
            return
        if len(batch) > 1:  # of the warm-up, too, before any lone text has been counted
            del self._lone_lengths[-_TAKEN_BACK:]
        elif batch.num_tokens <= MAX_LENGTH and not batch.is_blank:
            self._lone_lengths.append(batch.num_tokens)
        if len(self._lone_lengths) == _LONE_TEXTS:
            self._preparing = threading.Thread(target=self._prepare, name="bei-lone-graphs")
            self._preparing.start()

    def _prepare(self) -> None:
        """Replaces the graphs by those with fixed shapes for lone texts, unless they would take too much memory."""
        try:
            started = time.perf_counter()
            self._check_files()
            dynamic = self._read()
            is_shared = self.info.precision == "f32"  # bf16 shares, too, but more lengths gain nothing there
            lengths = lengths_for(dynamic, self.info.max_seq_len, self._lone_lengths, shared=is_shared)
            if not lengths or self.info.batch_tokens == _WIDE_BATCH_TOKENS:
                log.info("no graphs for single texts, which would take too much memory")
                return
            graph = with_lone_graphs(dynamic, ROWS if self.info.row_width else TOKENS, lengths)
            graphs = Graphs(at_low_priority(lambda: self._compile(graph)), self._pad_id, lengths)
            graphs.infer(_TWO_TEXTS, ROWS)  # packs the weights of the graph for any batch
            drop_mapped_pages(self._model.with_suffix(".bin"))
            self._check_files()  # again, because they were read meanwhile
        except EngineCorruptError as fault:
            log.warning("no graphs for single texts, which run slower without them: %s", fault)
            return
        except (EngineUnavailableError, RuntimeError):
            log.warning("no graphs for single texts, which run slower without them", exc_info=True)
            return
        before = self._idle.get()  # waits for the batch that runs
        self._idle.put(graphs)
        log.info(
            "compiled graphs for single texts of up to %d tokens in %.1f s", lengths[-1], time.perf_counter() - started
        )
        del before  # last, because to free the old model takes 0.1 s, in which the next batches run

    def _stamps(self) -> list[tuple[int, int, int]]:
        """Inode, size and time of modification of the model's two files; empty if there are no such files."""
        if not isinstance(self._model, Path):
            return []
        try:
            found = [path.stat() for path in (self._model, self._model.with_suffix(".bin"))]
        except OSError:
            return []
        return [(at.st_ino, at.st_size, at.st_mtime_ns) for at in found]

    def _check_files(self) -> None:
        """Raises EngineCorruptError if the files are not those that were loaded: they may be those of another model."""
        if self._stamps() != self._loaded:
            raise EngineCorruptError(
                f"{self._model.parent} was replaced or deleted; start the server again to serve it"
            )

    def padding_share(self) -> float:
        """See `Engine.padding_share`."""
        return self._last.padding_share

    def num_shared_tokens(self) -> int:
        """See `Engine.num_shared_tokens`."""
        return self._last.num_shared

    def close(self) -> None:
        """Free the compiled model. Waits for the thread that compiles graphs for lone texts."""
        if self._preparing is not None:
            self._preparing.join()
        del self._idle

    def _open(self, manifest: Manifest | None) -> openvino.CompiledModel:
        """The model for any batch, compiled now or at an earlier start. Raises EngineUnavailableError, OSError."""
        if manifest is None or not isinstance(self._model, Path):
            return self._compile(self._read())
        cache = CompiledCache(self._model, manifest, self._properties)
        try:
            return cache.load(self._probe) or cache.store(lambda: self._compile(self._read()), self._probe)
        except RuntimeError as fault:  # of the first batch, for which the plugin may have no kernel
            raise self._unavailable(fault) from fault

    def _probe(self, compiled: openvino.CompiledModel) -> list[Array]:
        """All outputs of a compiled model for two texts, with each of them as the wanted one."""
        graphs = Graphs(compiled, self._pad_id)
        computed = [graphs.infer(_TWO_TEXTS, port.any_name) for port in compiled.outputs]
        return [array for each in computed for array in (each.rows, each.tokens)]

    def _read(self) -> openvino.Model:
        """The graph for any batch. Raises EngineUnavailableError."""
        try:
            graph = core().read_model(self._model) if isinstance(self._model, Path) else self._model
            precision = str(self._properties["INFERENCE_PRECISION_HINT"])
            change_for(graph, precision, quantised=self._quantised)
        except RuntimeError as fault:
            raise self._unavailable(fault) from fault
        return graph

    def _compile(self, graph: openvino.Model) -> openvino.CompiledModel:
        """Raises EngineUnavailableError."""
        try:
            return core().compile_model(graph, "CPU", self._properties)
        except RuntimeError as fault:
            raise self._unavailable(fault) from fault

    def _unavailable(self, fault: RuntimeError) -> EngineUnavailableError:
        return EngineUnavailableError(f"OpenVINO cannot load the engine {self._model}: {fault}; build the engine again")


def load(folder: Path, spec: ModelSpec, manifest: Manifest, *, dtype: str, for_job: bool = False) -> OpenVinoEngine:
    """The engine in an engine folder, computing in `dtype`.

    For a job, several batches are computed at a time, each by its share of the processors: a batch takes longer, and
    all of them less. Raises EngineUnavailableError if the processor does not support the dtype.
    """
    quantised = manifest.precision == "int8"
    precision, num_streams = precision_for(dtype), min(usable_cpus(), _MAX_STREAMS) if for_job else 1
    return OpenVinoEngine(
        folder / MODEL, spec, precision, quantised=quantised, manifest=manifest, num_streams=num_streams
    )
