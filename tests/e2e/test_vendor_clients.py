"""Unmodified clients of other vendors' APIs, for Python and for Node. They run in environments of their own and are
compared with what our own routes answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from bei_core.tasks import Rows, l2_normalize
from tests.e2e.environments import CLIENTS_VENDORS, run_in, run_in_node
from tests.e2e.server import NAME, TEXTS, Server
from tests.golden.cases import GOLDEN
from tests.golden.tolerance import F32, compare

PROGRAM = Path(__file__).with_name("vendor_clients.py")
MODELS = {
    "embedder": GOLDEN / "bert-cls-normalize",
    "ranker": GOLDEN / "bert-rerank-pad7",
    "classifier": GOLDEN / "bert-topics-bf16-sharded",
}
SENT = [text.replace("\n", " ") for text in TEXTS[2:42]]
QUERY = "what is it that grows"
BEST = 5
NEAR = 1e-4  # of f32 scores, between batches

Outcomes: TypeAlias = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def servers(server_of: Callable[[Path], Server]) -> dict[str, Server]:
    """A server of a model that embeds, of one with one label, and of one with twelve; all of them very small."""
    return {name: server_of(model) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def given(servers: dict[str, Server]) -> str:
    """The input of the programs."""
    urls = {name: server.url for name, server in servers.items()}
    return json.dumps({**urls, "texts": SENT, "query": QUERY, "model": NAME})


@pytest.fixture(scope="module")
def of_python(given: str) -> Outcomes:
    """The outcome of each client for Python, all in one process: imports take longer than requests."""
    environ = {
        "HF_HUB_OFFLINE": "0",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it fetches its list of prices from the network otherwise
        "CHROMA_OPENAI_API_KEY": "any",
        "NO_PROXY": "127.0.0.1",
    }
    return dict(json.loads(run_in(CLIENTS_VENDORS, ["-W", "ignore", PROGRAM], given=given, environ=environ)))


@pytest.fixture(scope="module")
def of_node(given: str) -> Outcomes:
    """The outcome of each client for Node."""
    return dict(json.loads(run_in_node("clients.mjs", given)))


def answer(outcomes: Outcomes, name: str) -> Any:  # noqa: ANN401 - JSON
    """The reply that a client got. Fails with the client's traceback if it raised."""
    assert "fault" not in outcomes[name], outcomes[name]["fault"]
    return outcomes[name]["answer"]


@pytest.fixture(scope="module")
def vectors(servers: dict[str, Server]) -> Rows:
    """f32[N, D]: what `/embed` answers."""
    return np.array(servers["embedder"].post("/embed", {"inputs": SENT}).json(), np.float32)


@pytest.fixture(scope="module")
def ranking(servers: dict[str, Server]) -> list[dict[str, Any]]:
    """What `/rerank` answers."""
    reply = servers["ranker"].post("/rerank", {"query": QUERY, "texts": SENT, "return_text": True})
    return list(reply.json())


def same(found: Sequence[Sequence[Any]], expected: Sequence[dict[str, Any]]) -> None:
    """The same documents in the same order, with the same scores but for rounding."""
    assert [(index, text) for index, _, text in found] == [(item["index"], item["text"]) for item in expected]
    assert np.allclose([score for _, score, _ in found], [item["score"] for item in expected], atol=NEAR)


EMBEDDERS = ["cohere", "hosted_vllm", "infinity", "jina_ai", "nvidia_nim", "ollama", "openai", "openai_like", "voyage"]
RANKERS = ["cohere", "hosted_vllm", "huggingface", "infinity", "jina_ai", "voyage"]


@pytest.mark.parametrize(
    "client",
    [
        *(f"litellm_{name}" for name in EMBEDDERS),
        "chroma_hugging_face",
        "chroma_ollama",
        "chroma_openai",
        "langchain_cohere",
        "langchain_nvidia",
        "mixedbread_embed",
        "ollama_embed",
        "tei_embed",
        "voyage_embed",
    ],
)
def test_clients_for_python_get_the_servers_vectors(vectors: Rows, of_python: Outcomes, client: str) -> None:
    compare(np.array(answer(of_python, client), np.float32), vectors, F32)


@pytest.mark.parametrize(
    "client",
    [
        *(f"litellm_{name}_rerank" for name in RANKERS),
        "langchain_cohere_rerank",
        "mixedbread_rerank",
        "voyage_rerank",
    ],
)
def test_clients_for_python_get_the_servers_order(
    ranking: list[dict[str, Any]], of_python: Outcomes, client: str
) -> None:
    same(answer(of_python, client), ranking[:BEST])


@pytest.mark.parametrize("client", ["tei_rerank", "voyage_rerank_all"])
def test_clients_get_every_document(ranking: list[dict[str, Any]], of_python: Outcomes, client: str) -> None:
    same(answer(of_python, client), ranking)


@pytest.mark.parametrize(
    "client", ["litellm_nvidia_nim_rerank", "litellm_nvidia_nim/ranking_rerank", "langchain_nvidia_rerank"]
)
def test_nvidias_clients_get_logits(servers: dict[str, Server], of_python: Outcomes, client: str) -> None:
    body = {"query": QUERY, "texts": SENT, "return_text": True, "raw_scores": True}
    same(answer(of_python, client), servers["ranker"].post("/rerank", body).json()[:BEST])


def test_a_query_gets_the_models_prompt(servers: dict[str, Server], of_python: Outcomes) -> None:
    expected = servers["embedder"].post("/embed", {"inputs": [QUERY], "prompt_name": "query"}).json()
    compare(np.array(answer(of_python, "langchain_nvidia_query"), np.float32), np.array(expected, np.float32), F32)


@pytest.mark.parametrize("client", ["litellm_voyage_8", "voyage_embed_int8"])
def test_voyages_dimensions_and_dtype(vectors: Rows, of_python: Outcomes, client: str) -> None:
    found = np.array(answer(of_python, client), np.float32)
    assert found.shape == (len(SENT), 8)
    cut = l2_normalize(np.ascontiguousarray(vectors[:, :8]))
    assert (np.einsum("nd,nd->n", l2_normalize(found), cut) > 0.999).all()


def test_teis_client_reads_models_labels_and_tokens(servers: dict[str, Server], of_python: Outcomes) -> None:
    assert answer(of_python, "tei_info") == ["embedding", "reranker", "classifier"]
    expected = servers["classifier"].post("/predict", {"inputs": [[text] for text in SENT]}).json()
    for found, labels in zip(answer(of_python, "tei_classify"), expected, strict=True):
        assert [label for label, _ in found] == [item["label"] for item in labels]
        assert np.allclose([score for _, score in found], [item["score"] for item in labels], atol=NEAR)
    ids, texts = answer(of_python, "tei_tokens")
    assert texts == servers["embedder"].post("/decode", {"ids": ids}).json()


def test_ollamas_client_lists_the_model(of_python: Outcomes) -> None:
    assert answer(of_python, "ollama_list") == [NAME]


@pytest.mark.parametrize(
    "client", ["openai_base64", "openai_float", "ai_openai", "ai_openai_compatible", "ai_cohere", "cohere_v2"]
)
def test_clients_for_node_get_the_servers_vectors(vectors: Rows, of_node: Outcomes, client: str) -> None:
    compare(np.array(answer(of_node, client), np.float32), vectors, F32)


@pytest.mark.parametrize("client", ["ai_cohere_rerank", "cohere_v1_rerank", "cohere_v2_rerank"])
def test_clients_for_node_get_the_servers_order(ranking: list[dict[str, Any]], of_node: Outcomes, client: str) -> None:
    same(answer(of_node, client), ranking[:BEST])


def test_openai_for_node_reads_models_and_errors(of_node: Outcomes) -> None:
    assert answer(of_node, "openai_models") == [[NAME], NAME]
    assert answer(of_node, "openai_error") == ["BadRequestError", 400, "Empty", "input"]
