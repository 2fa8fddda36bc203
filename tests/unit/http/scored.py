"""An application over an engine whose logits are known, for tests of the routes that answer with scores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import numpy as np

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.http.app import App
from bei_core.models.modules import Classifier
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Rows, Scoring, Similarity, scores
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
RERANKER = Classifier(("LABEL_0",), "sigmoid")
CLASSIFIER = Classifier(("negative", "neutral", "positive"), "softmax")


def logits(batch: Batch, count: int) -> Rows:
    """f32[B, count]: by length and second segment, so that another input, or a pair read as one, is another score."""
    ends = batch.cu_seqlens[1:-1]
    sums = [float(ids.sum() % 97) + 10.0 * kinds.sum() for ids, kinds in _parts(batch, ends)]
    return np.array([[value / 50.0 - index for index in range(count)] for value in sums], np.float32)


def _parts(batch: Batch, ends: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 - arrays
    return list(zip(np.split(batch.input_ids, ends), np.split(batch.type_ids, ends), strict=True))


class Scores:
    """An engine that gives `logits`."""

    def __init__(self, count: int) -> None:
        self.info = EngineInfo("fake", "cpu", "f32", count, max_seq_len=48, batch_tokens=256)

    def forward(self, batch: Batch) -> Rows:
        """f32[B, count]."""
        return logits(batch, self.info.row_width)

    def forward_tokens(self, batch: Batch) -> tuple[Rows, Rows]:
        """No rows of tokens."""
        return self.forward(batch), np.empty((batch.num_tokens, 0), np.float32)

    def padding_share(self) -> float:
        """None."""
        return 0.0

    def num_shared_tokens(self) -> int:
        """Returns 0: every token is computed."""
        return 0

    def close(self) -> None:
        """Nothing to close."""


def spec_of(classifier: Classifier | None) -> ModelSpec:
    spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
    return spec if classifier is None else msgspec.structs.replace(spec, modules=(classifier,))


@asynccontextmanager
async def serving(classifier: Classifier | None, similarity: Similarity = "cosine") -> AsyncIterator[httpx.AsyncClient]:
    """A client of a model with that head; an embedder for none."""
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    count = len(classifier.labels) if classifier else 8
    spec = spec_of(classifier)
    if similarity != "cosine":
        spec = msgspec.structs.replace(spec, similarity=similarity, normalize=False)
    found = Opened(Scores(count), spec, FOLDER / "tokenizer.json", manifest)
    service = Service(found, Settings.load({"model_id": "owner/name"}, {}))
    service.start()
    transport = httpx.ASGITransport(App(service))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://bei") as client:
            yield client
    finally:
        service.close()


def expected(inputs: list[tuple[str, ...]], count: int, scoring: Scoring) -> Rows:
    """What the fake engine's scores are for inputs, encoded by the tokenizer itself."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = []
    for item in inputs:
        encoding = tokenizer.encode(item[0], item[1]) if len(item) == 2 else tokenizer.encode(item[0])
        ids, kinds = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
        ends = np.array([0, len(ids)], np.int32)
        rows.append(logits(Batch(ids, kinds, ends, len(ids), np.zeros(1, np.int32)), count)[0])
    return scores(np.stack(rows), scoring)
