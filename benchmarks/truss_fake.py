"""An engine that takes no time, for what is around an engine to be measured; loaded inside the servers of truss.py."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.metrics import Metrics
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Rows

WIDTH = 1024
_NUM_ROWS = 4096


class InstantEngine:
    """Rows of random numbers, the same ones for the same tokens."""

    def __init__(self) -> None:
        self.info = EngineInfo("fake", "cpu", "f32", WIDTH, max_seq_len=256, batch_tokens=16_384)
        self._rows = np.random.default_rng(0).standard_normal((_NUM_ROWS, WIDTH), np.float32)

    def forward(self, batch: Batch) -> Rows:
        """f32[B, WIDTH]; see `Engine.forward`."""
        sums = np.add.reduceat(batch.input_ids, batch.cu_seqlens[:-1])
        found: Rows = self._rows[sums % _NUM_ROWS]
        return found

    def forward_tokens(self, batch: Batch) -> tuple[Rows, Rows]:
        """No rows of tokens: `token_width` is 0."""
        raise NotImplementedError

    def padding_share(self) -> float:
        """None is padding."""
        return 0.0

    def close(self) -> None:
        """There is nothing to free."""


def _open(settings: Settings, metrics: Metrics | None = None, turns: object = None) -> Service:
    """In place of `Service.open`: the model's own tokenizer, and an engine that is none."""
    folder = Path(settings.model_id or "")
    manifest = Manifest(engine="fake", precision="f32", source="fake", revision="0", artifact="0" * 64)
    opened = Opened(InstantEngine(), read_spec(resolve(str(folder))), folder / "tokenizer.json", manifest)
    service = Service(opened, settings, metrics)
    service.start()
    return service


def install() -> None:
    """Every service of this process gets such an engine."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Service.open = _open  # type: ignore[method-assign]
