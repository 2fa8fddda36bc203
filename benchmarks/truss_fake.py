"""An engine that takes no time, to measure everything around it; loaded inside the servers of truss.py."""

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
    """Returns random rows, the same row for the same tokens."""

    def __init__(self) -> None:
        self.info = EngineInfo("fake", "cpu", "f32", WIDTH, max_seq_len=256, batch_tokens=16_384)
        self._rows = np.random.default_rng(0).standard_normal((_NUM_ROWS, WIDTH), np.float32)

    def forward(self, batch: Batch) -> Rows:
        """f32[B, WIDTH]; see `Engine.forward`."""
        sums = np.add.reduceat(batch.input_ids, batch.cu_seqlens[:-1])
        rows: Rows = self._rows[sums % _NUM_ROWS]
        return rows

    def forward_tokens(self, batch: Batch) -> tuple[Rows, Rows]:
        """Raises NotImplementedError: `token_width` is 0."""
        raise NotImplementedError

    def padding_share(self) -> float:
        """0: there is no padding."""
        return 0.0

    def num_shared_tokens(self) -> int:
        """Returns 0: every token is computed."""
        return 0

    def close(self) -> None:
        """Does nothing."""


def _open(settings: Settings, metrics: Metrics | None = None, turns: object = None) -> Service:
    """Replaces `Service.open`: a service with the model's own tokenizer and the fake engine."""
    folder = Path(settings.model_id or "")
    manifest = Manifest(engine="fake", precision="f32", source="fake", revision="0", artifact="0" * 64)
    opened = Opened(InstantEngine(), read_spec(resolve(str(folder))), folder / "tokenizer.json", manifest)
    service = Service(opened, settings, metrics)
    service.start()
    return service


def install() -> None:
    """Makes every service of this process use the fake engine."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Service.open = _open  # type: ignore[method-assign]
