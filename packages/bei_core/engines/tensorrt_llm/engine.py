"""The engine on TensorRT-LLM: its encode-only mode, with the model classes of this project.

Only one thread at a time may call the engine.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest, key_of
from bei_core.engines.tensorrt_llm._compat import VERSION, check_version, upstream
from bei_core.engines.tensorrt_llm.limits import check_model, needs_loop
from bei_core.engines.torch.batches import LONGEST, TEXTS, TOKENS, Array, PackedEngine, Parts
from bei_core.engines.torch.folder import DTYPES, class_name, read_facts
from bei_core.engines.torch.loading import check_gpu, tuning_folder
from bei_core.engines.torch.models.sequences import flatten
from bei_core.errors import EngineUnavailableError
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)

# The limits of one forward pass. This number of tokens keeps the largest GPU busy; more tokens would only add latency
# (docs/gpu.md).
MAX_NUM_TOKENS = 16_384
MAX_BATCH_SIZE = 256


class TensorRtLlmEngine(PackedEngine):
    """A model that TensorRT-LLM runs on a GPU, loaded from an engine folder. It implements `Engine`."""

    def __init__(self, folder: Path, spec: ModelSpec, precision: str, dtype: str) -> None:
        self._vocab_size = spec.vocab_size
        self._max_num_tokens = max(MAX_NUM_TOKENS, spec.max_seq_len)
        self._parts = Parts(self._max_num_tokens, MAX_BATCH_SIZE)
        facts = read_facts(folder)
        check_model(facts, dtype)
        _set_autotuner_cache(folder, batch=MAX_BATCH_SIZE, tokens=self._max_num_tokens, length=spec.max_seq_len)
        try:
            self._llm = upstream("LLM")(
                model=str(folder),
                encode_only=True,
                skip_tokenizer_init=True,
                dtype=dtype,
                # TensorRT-LLM's fused attention kernels (TRTLLM) do not support f32.
                attn_backend="VANILLA" if dtype == "float32" else "TRTLLM",
                max_batch_size=MAX_BATCH_SIZE,
                max_num_tokens=self._max_num_tokens,
                max_seq_len=spec.max_seq_len,
                cuda_graph_config=None if needs_loop(facts) else _cuda_graphs(spec.max_seq_len),
            )
        except Exception as fault:
            hint = "; CUDA finds no GPU here: there is no GPU or no driver, or CUDA_VISIBLE_DEVICES hides it"
            hint = "" if torch.cuda.is_available() else hint
            raise EngineUnavailableError(f"TensorRT-LLM cannot load {folder}: {fault}{hint}") from fault
        self.info = EngineInfo(
            name="tensorrt_llm",
            device="gpu",
            precision=precision,
            row_width=self._encode(Batch.blank())[0].shape[1],
            max_seq_len=spec.max_seq_len,
            batch_tokens=self._max_num_tokens,
        )

    def compute(self, batch: Batch, *, with_tokens: bool) -> list[tuple[Array, Array]]:
        """See `PackedEngine.compute`; E is 0, because TensorRT-LLM only returns rows of sequences."""
        return self._parts.run(self._encode, batch)

    def close(self) -> None:
        """Shuts TensorRT-LLM down, which frees the memory of the GPU."""
        self._llm.shutdown()

    def _encode(self, batch: Batch) -> tuple[Array, Array]:
        """Returns f32[B, D] and f32[T, 0].

        `LLM.encode` takes lists of ids: it joins them in a loop, which is slower for arrays. Making them of 16,384
        tokens takes 0.3 ms.
        """
        ids, cu_seqlens = pack_ids(batch, self._vocab_size).tolist(), batch.cu_seqlens.tolist()
        texts = [ids[start:stop] for start, stop in itertools.pairwise(cu_seqlens)]
        rows = self._llm.encode(texts, return_raw_logits=True).float().numpy()
        return rows, np.empty((batch.num_tokens, 0), np.float32)


def pack_ids(batch: Batch, vocab_size: int) -> torch.Tensor:
    """Returns i32[T]: id + vocab_size * (type + 2 * is_skipped), which `classes.unpack_ids` unpacks.

    Token types must be 0 or 1. `is_skipped` is 1 for a token that pooling leaves out: the first `batch.skips` tokens of
    each sequence, which are its prompt.
    """
    ids, type_ids, _, pooled = flatten(batch)[: 4 * batch.num_tokens].view(4, -1)
    return ids + vocab_size * (type_ids + 2 * (1 - pooled))


def load(folder: Path, spec: ModelSpec, manifest: Manifest, *, dtype: str) -> TensorRtLlmEngine:
    """Loads the engine of an engine folder. The manifest gives its precision; `dtype` has no effect.

    Raises EngineUnavailableError if TensorRT-LLM is not installed, has another version or cannot load the engine, or if
    the GPU does not support the precision. Raises UnsupportedModelError for a model that TensorRT-LLM does not run.
    """
    check_version()
    check_gpu(manifest.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from bei_core.engines.tensorrt_llm.classes import PackedModel

    upstream("register_auto_model")(class_name(read_facts(folder)))(PackedModel)
    return TensorRtLlmEngine(folder, spec, manifest.precision, DTYPES[manifest.precision])


def _cuda_graphs(max_seq_len: int) -> Any:
    """Returns the sizes of CUDA graphs, those of the torch engine. Larger batches run without CUDA graphs.

    At every start, TensorRT-LLM captures a graph for every possible combination of the sizes, so the lists are short.
    """
    lengths = [length for length in LONGEST if length <= max_seq_len] or [max_seq_len]
    return upstream("EncodeCudaGraphConfig")(
        batch_sizes=list(TEXTS),
        num_tokens=[number for number in TOKENS if number >= min(lengths)],
        seq_lens=lengths,
        enable_padding=True,
    )


def _set_autotuner_cache(folder: Path, **limits: int) -> None:
    """Names the file in which TensorRT-LLM saves which kernels it chooses, and reads what it saved at an earlier start.

    There is one for each GPU, driver, version of packages and `limits`, on which the choice depends.
    """
    facts: dict[str, object] = {"tensorrt_llm": VERSION, "torch": str(torch.__version__), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        facts |= {"card": torch.cuda.get_device_name(0), "capability": torch.cuda.get_device_capability(0)}
    driver = Path("/proc/driver/nvidia/version")
    facts["driver"] = driver.read_text().splitlines()[0] if driver.is_file() else ""
    path = (tuning_folder(folder) or Path(tempfile.gettempdir())) / f"{key_of({**facts, **limits})}.json"
    log.info(
        "TensorRT-LLM loads %s: it captures CUDA graphs, and at the first start on a GPU chooses kernels. Both take "
        "minutes; the choice is saved in %s",
        folder,
        path,
    )
    os.environ["TLLM_AUTOTUNER_CACHE_PATH"] = str(path)
