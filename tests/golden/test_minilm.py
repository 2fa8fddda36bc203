"""The real all-MiniLM-L6-v2 in the whole service gives sentence-transformers' vectors of 200 texts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.openvino import lone
from bei_core.serving.service import Service
from bei_core.tasks import Embed, Rows
from tests.golden.cases import load_minilm
from tests.golden.tolerance import BF16, F32, Tolerance, compare

REFERENCE = load_minilm()
TEXTS = list(REFERENCE.texts)
NUM_LENGTHS = 3  # of the graphs for lone texts: compiling those of all lengths takes seconds


@pytest.fixture(scope="module")
def service(dtype: str, minilm: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    cache_dir = tmp_path_factory.mktemp(f"minilm-{dtype}")
    flags = {"model_id": str(minilm.folder), "dtype": dtype, "cache_dir": str(cache_dir)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lone, "_NUM_LENGTHS", NUM_LENGTHS)
        service = Service.open(Settings.load(flags, {}))
        yield service
        service.close()


@pytest.fixture(scope="module")
def tolerance(dtype: str) -> Tolerance:
    return {"float32": F32, "bfloat16": BF16}[dtype]


@pytest.fixture(scope="module")
def together(service: Service) -> Rows:
    """All texts as one request."""
    return asyncio.run(embedded(service, TEXTS))


async def embedded(service: Service, texts: list[str]) -> Rows:
    return (await service.run(Embed(texts, service.model.default_options, normalize=True))).rows


def test_one_request_of_all_texts_gives_the_expected_vectors(together: Rows, tolerance: Tolerance) -> None:
    compare(together, REFERENCE.vectors, tolerance)


def test_each_text_alone_gives_the_expected_vector_and_that_of_the_batch(
    service: Service, together: Rows, tolerance: Tolerance
) -> None:
    async def one_by_one() -> Rows:
        return np.concatenate([await embedded(service, [text]) for text in TEXTS])

    alone = asyncio.run(one_by_one())
    compare(alone, REFERENCE.vectors, tolerance)
    compare(alone, together, tolerance)


def test_many_callers_at_once_each_get_their_own_vector(service: Service, tolerance: Tolerance) -> None:
    async def all_at_once() -> list[Rows]:
        return await asyncio.gather(*(embedded(service, [text]) for text in TEXTS[:57]))

    compare(np.concatenate(asyncio.run(all_at_once())), REFERENCE.vectors[:57], tolerance)


def test_the_same_request_gives_the_same_bits(service: Service) -> None:
    once, again = (asyncio.run(embedded(service, TEXTS[40:60])) for _ in range(2))
    assert once.tobytes() == again.tobytes()


def test_texts_are_truncated_to_the_models_length(service: Service) -> None:
    assert service.tokenizer.max_seq_len == max(map(len, REFERENCE.ids)) == 256
