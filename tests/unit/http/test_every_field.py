"""Every field of every API's requests changes the reply, or is refused by its name, or changes nothing in that API."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import msgspec
import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.http.app import App
from bei_core.models.modules import Classifier, Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Rows
from tests.fakes import FakeEngine
from tests.golden.cases import GOLDEN
from tests.unit.http.fields import HONOURED, NO_EFFECT, TOO_LONG, VECTORS, Outcome, Request
from tests.unit.http.fields_scores import SCORES
from tests.unit.http.scored import CLASSIFIER, RERANKER, serving
from tests.unit.http.test_tokenwise import NER
from tests.unit.http.test_tokenwise import serving as serving_tokens

FOLDER = GOLDEN / "bert-cls-normalize"
VOLATILE = re.compile(r'"(id|created|model|total_duration)":("[^"]*"|\d+)')


class Engine(FakeEngine):
    """Vectors of tokens have different directions."""

    def forward_tokens(self, batch: Batch) -> tuple[Rows, Rows]:
        """f32[B, WIDTH] and f32[T, 2]."""
        ids = batch.input_ids.astype(np.float32)
        return self.forward(batch), np.stack([ids, ids % 7], axis=1)


@asynccontextmanager
async def embedder() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a model with prompts and mean pooling."""
    spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
    prompts = {"query": "search: ", "passage": "text: ", "clustering": "group: "}
    spec = msgspec.structs.replace(spec, prompts=prompts, modules=(Pooling((PoolingMode.MEAN,)),), max_seq_len=48)
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    opened = Opened(Engine(max_seq_len=48), spec, FOLDER / "tokenizer.json", manifest)
    service = Service(opened, Settings.load({"model_id": "owner/name"}, {}))
    service.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(service)), base_url="http://bei") as client:
            yield client
    finally:
        service.close()


def server_of(kind: str) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """A server of a model of a kind, over a fake engine."""
    heads: dict[str, Classifier] = {"ranker": RERANKER, "classifier": CLASSIFIER}
    if kind == "tagger":
        return serving_tokens(NER)
    return embedder() if kind == "embedder" else serving(heads[kind])


CASES = [
    pytest.param(
        request, field, value, outcome, id=f"{request.api} {request.path} {request.kind} {field}={value!r}"[:90]
    )
    for request in (*VECTORS, *SCORES)
    for field, given in request.fields.items()
    for value, outcome in ([given] if isinstance(given, tuple) else given)
]


@pytest.mark.parametrize(("request_", "field", "value", "outcome"), CASES)
async def test_a_field_is_honoured_or_refused_by_its_name(
    request_: Request, field: str, value: object, outcome: Outcome
) -> None:
    async with server_of(request_.kind) as client:
        plain = await client.post(request_.path, json=request_.body)
        reply = await client.post(request_.path, json={**request_.body, field: value})
    assert plain.status_code == 200, plain.text
    if outcome in {HONOURED, NO_EFFECT}:
        assert reply.status_code == 200, reply.text
        before, after = (VOLATILE.sub("", each.text) for each in (plain, reply))
        assert (before != after) == (outcome == HONOURED)
        return
    assert reply.status_code == 422, reply.text
    names = [field, *value] if isinstance(value, dict) else [field]
    named = [mark for name in names for mark in (f"`{name}`", f".{name}`")]
    assert any(text in reply.text for text in (["must have less than"] if outcome == TOO_LONG else named))
