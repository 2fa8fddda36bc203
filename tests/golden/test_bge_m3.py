"""bge-m3 as it is published gives the dense, sparse and ColBERT vectors of FlagEmbedding, in one pass of one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened, load
from bei_core.errors import CheckpointError
from bei_core.http.app import App
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Embed, Rows, Sparse, Tokens
from tests.golden.bge_m3 import COLBERT, EXPECTED, SPARSE, TEXTS, write
from tests.golden.engines import built
from tests.golden.tolerance import BF16_WIDE, F32, compare

ARRAYS = load_file(EXPECTED)
IDS = np.split(ARRAYS["ids"], np.cumsum(ARRAYS["ids_counts"])[:-1])
TERMS, WEIGHTS = (np.split(ARRAYS[name], np.cumsum(ARRAYS["terms_counts"])[:-1]) for name in ("terms", "weights"))
COLBERT_VECTORS = np.split(ARRAYS["colbert"], np.cumsum(ARRAYS["ids_counts"] - 1)[:-1])
TOLERANCES = {"float32": F32, "bfloat16": BF16_WIDE}
MAX_ABS = {"float32": 1e-5, "bfloat16": 0.04}  # of the weight of a term, at most 1.2; torch's own bf16 is off by 0.024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("published") / "bge-m3")


@pytest.fixture(scope="module")
def engines(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder."""
    path = tmp_path_factory.mktemp("engine") / "bge-m3"
    checkpoint = resolve(str(folder))
    built(checkpoint, read_spec(checkpoint), path).close()
    return path


def _recorded(run: Callable[[Batch], Any], batches: list[Batch]) -> Callable[[Batch], Any]:
    """`run`, which also adds its batch to the list."""

    def both(batch: Batch) -> object:
        batches.append(batch)
        return run(batch)

    return both


@asynccontextmanager
async def serving(engine: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Opened, list[Batch]]]:
    """A client of the served engine, and the batches that it computed for the client."""
    opened = load(engine, "float32")
    service = Service(opened, Settings.load({"model_id": str(engine)}, {}))
    service.start()
    batches: list[Batch] = []
    for name in ("forward", "forward_tokens"):
        setattr(opened.engine, name, _recorded(getattr(opened.engine, name), batches))
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(service)), base_url="http://bei") as client:
            yield client, opened, batches
    finally:
        service.close()


def check_terms(found: Sequence[Sparse], max_abs: float, *, exactly: bool = True) -> None:
    """Raises AssertionError unless the terms of each text and their weights are the expected ones."""
    assert len(found) == len(TEXTS)
    for terms, indices, values in zip(found, TERMS, WEIGHTS, strict=True):
        if exactly:
            assert terms.indices.tolist() == indices.tolist()
        dense = [np.zeros(300, np.float32) for _ in range(2)]
        dense[0][terms.indices], dense[1][indices] = terms.values, values
        assert np.abs(dense[0] - dense[1]).max() <= max_abs


def sparse_of(reply: list[list[dict[str, Any]]]) -> list[Sparse]:
    return [
        Sparse(np.array([each["index"] for each in terms]), np.array([each["value"] for each in terms], np.float32))
        for terms in reply
    ]


def vectors(rows: Sequence[Any]) -> Rows:
    return np.array(rows, np.float32)


def joined(texts: Sequence[list[Any]]) -> Rows:
    """The vectors of the tokens of all texts."""
    return np.concatenate([vectors(rows) for rows in texts])


def test_the_layers_and_the_tokens_that_are_no_terms_are_read_from_the_folder(folder: Path) -> None:
    spec = read_spec(resolve(str(folder)))
    assert spec.kind == "embedding"
    assert spec.bge_m3 is not None
    assert spec.bge_m3.unweighted_ids == (0, 1, 2, 3)  # <s>, <pad>, </s>, <unk>


def test_one_pass_gives_all_three_in_a_batch_and_alone(dtype: str, engines: Path) -> None:
    engine = load(engines, dtype).engine
    assert (engine.info.row_width, engine.info.token_width, engine.info.weighs_terms) == (32, 32, True)
    tokens = [Tokens(ids, np.zeros_like(ids)) for ids in IDS]
    packed = engine.forward_tokens(Batch.pack(tokens))
    singles = [engine.forward_tokens(Batch.pack([item])) for item in tokens]
    alone = tuple(np.concatenate(parts) for parts in zip(*singles, strict=True))
    for rows, of_tokens in (packed, alone):
        compare(Embed(TEXTS).finish(rows), ARRAYS["dense"], TOLERANCES[dtype])
        parts = np.split(of_tokens, np.cumsum(ARRAYS["ids_counts"])[:-1])
        compare(np.concatenate([part[1:, :-1] for part in parts]), ARRAYS["colbert"], TOLERANCES[dtype])
        found = [Sparse.of_tokens(ids, part[:, -1]).without((0, 1, 2, 3)) for ids, part in zip(IDS, parts, strict=True)]
        check_terms(found, MAX_ABS[dtype], exactly=dtype == "float32")
    np.testing.assert_array_equal(engine.forward(Batch.pack(tokens)), packed[0])


async def test_each_route_gives_its_own(engines: Path) -> None:
    async with serving(engines) as (client, _, _):
        dense = (await client.post("/embed", json={"inputs": TEXTS})).json()
        openai = (await client.post("/v1/embeddings", json={"input": TEXTS, "model": "any"})).json()
        sparse = (await client.post("/embed_sparse", json={"inputs": TEXTS})).json()
        colbert = (await client.post("/embed_all", json={"inputs": TEXTS})).json()
        info = (await client.get("/info")).json()
    compare(vectors(dense), ARRAYS["dense"], F32)
    compare(vectors([each["embedding"] for each in openai["data"]]), ARRAYS["dense"], F32)
    check_terms(sparse_of(sparse), 1e-5)
    compare(joined(colbert), ARRAYS["colbert"], F32)
    assert [len(rows) for rows in colbert] == [len(rows) for rows in COLBERT_VECTORS]
    assert (info["kind"], info["dimensions"]) == ("embedding", 32)
    assert info["roles"] == ["embedding", "sparse"]


async def test_what_is_asked_together_is_computed_once(engines: Path) -> None:
    asked = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    async with serving(engines) as (client, _, batches):
        reply = (await client.post("/embed_all", json={"inputs": TEXTS, **asked})).json()
    assert sum(batch.num_tokens for batch in batches) == len(ARRAYS["ids"])
    compare(vectors(reply["dense_vecs"]), ARRAYS["dense"], F32)
    compare(joined(reply["colbert_vecs"]), ARRAYS["colbert"], F32)
    terms = [{"index": int(name), "value": value} for text in reply["lexical_weights"] for name, value in text.items()]
    assert [each["index"] for each in terms] == ARRAYS["terms"].tolist()
    assert np.abs(np.array([each["value"] for each in terms]) - ARRAYS["weights"]).max() <= 1e-5


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"return_sparse": True}, {"dense_vecs", "lexical_weights"}),
        ({"return_dense": False, "return_colbert_vecs": True}, {"colbert_vecs"}),
        ({"return_dense": False, "return_sparse": True}, {"lexical_weights"}),
        ({"return_colbert_vecs": False}, {"dense_vecs"}),
    ],
)
async def test_the_defaults_are_those_of_flagembedding(asked: dict[str, bool], given: set[str], engines: Path) -> None:
    async with serving(engines) as (client, _, _):
        reply = (await client.post("/embed_all", json={"inputs": TEXTS[:2], **asked})).json()
    assert reply.keys() == {"dense_vecs", "lexical_weights", "colbert_vecs"}
    assert {name for name, value in reply.items() if value is not None} == given
    assert all(len(reply[name]) == 2 for name in given)


async def test_nothing_asked_is_refused(engines: Path) -> None:
    async with serving(engines) as (client, _, _):
        reply = await client.post("/embed_all", json={"inputs": "a", "return_dense": False})
    assert reply.status_code == 422
    assert "at least one of" in reply.json()["error"]


async def test_pooling_of_vllm_gives_vectors_without_the_first_token_and_weights_without_both_ends(
    engines: Path,
) -> None:
    """The `BOSEOSFilter`s of vLLM's `BgeM3EmbeddingModel`."""
    async with serving(engines) as (client, _, _):
        bodies = [{"input": TEXTS, "task": task} for task in ("token_embed", "token_classify", "embed")]
        replies = [(await client.post("/pooling", json=body)).json()["data"] for body in bodies]
        refused = await client.post("/pooling", json={**bodies[1], "use_activation": False})
    vectors_of, weights_of, dense = ([each["data"] for each in reply] for reply in replies)
    compare(joined(vectors_of), ARRAYS["colbert"], F32)
    compare(vectors(dense), ARRAYS["dense"], F32)
    found = [Sparse.of_tokens(ids[1:-1], vectors(weights)) for ids, weights in zip(IDS, weights_of, strict=True)]
    check_terms([terms.without([3]) for terms in found], 1e-5)  # vLLM weighs <unk>
    assert refused.status_code == 422


async def test_an_input_of_one_token_has_no_colbert_vector_and_ids_of_special_tokens_are_no_terms(
    engines: Path,
) -> None:
    async with serving(engines) as (client, _, _):
        vectors_of = (await client.post("/embed_all", json={"inputs": [[7]]})).json()
        terms = (await client.post("/embed_sparse", json={"inputs": [[0, 1, 2, 3]]})).json()
    assert vectors_of == [[]]
    assert terms == [[]]


async def test_int8_keeps_the_layers_in_f32_and_measures_the_dense_vectors(folder: Path, tmp_path: Path) -> None:
    from bei_core.engines.open import build_engine

    flags = {"model_id": str(folder), "dtype": "int8", "cache_dir": str(tmp_path), "quality_mean_cosine": 0.9}
    opened = load(build_engine(Settings.load(flags, {}), tmp_path / "engine"))
    quality = opened.manifest.quality
    assert quality is not None
    tokens = [Tokens(ids, np.zeros_like(ids)) for ids in IDS]
    rows, of_tokens = opened.engine.forward_tokens(Batch.pack(tokens))
    assert (rows.shape, of_tokens.shape) == ((len(TEXTS), 32), (len(ARRAYS["ids"]), 33))
    opened.close()
    assert quality.kind == "embedding"


@pytest.mark.parametrize("missing", [SPARSE, COLBERT])
def test_with_one_of_the_layers_alone_the_model_has_none(missing: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "bge-m3")
    (folder / missing.name).unlink()
    assert read_spec(resolve(str(folder))).bge_m3 is None


def test_a_layer_of_another_size_is_refused_by_its_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "bge-m3")
    (folder / COLBERT.name).write_bytes(SPARSE.read_bytes())
    (folder / SPARSE.name).write_bytes(COLBERT.read_bytes())
    checkpoint = resolve(str(folder))
    with pytest.raises(CheckpointError, match=r"sparse_linear.pt: tensor weight has shape \(32, 32\)"):
        built(checkpoint, read_spec(checkpoint), tmp_path / "engine")
