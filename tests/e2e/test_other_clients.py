"""Unmodified clients that the other tests' packages exclude: Infinity's, and LangChain's integrations of it and of
text-embeddings-inference. They run in an environment of their own and are compared with what our own routes answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from bei_core.tasks import Rows
from tests.e2e.environments import CLIENTS, run_in
from tests.e2e.server import NAME, TEXTS, Server
from tests.golden.cases import GOLDEN
from tests.golden.tolerance import F32, compare

PROGRAM = Path(__file__).with_name("other_clients.py")
MODELS = {
    "embedder": GOLDEN / "bert-cls-normalize",
    "ranker": GOLDEN / "bert-rerank-pad7",
    "classifier": GOLDEN / "bert-topics-bf16-sharded",
}
SENT = [
    text.replace("\n", " ") for text in TEXTS[2:150]
]  # more than LangChain puts into one request; it drops newlines
QUERY = "what is it that grows"
BEST = 5
NEAR = 1e-4  # of f32 scores, between batches

Outcomes: TypeAlias = dict[str, dict[str, Any]]
Scores: TypeAlias = list[tuple[int, float]]  # (index of a document, score), the best first


@pytest.fixture(scope="module")
def servers(server_of: Callable[[Path], Server]) -> dict[str, Server]:
    """A server of a model that embeds, of one with one label, and of one with twelve; all of them very small."""
    return {name: server_of(model) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def outcomes(servers: dict[str, Server]) -> Outcomes:
    """The outcome of each client. All run in one process, because their imports take longer than their requests."""
    urls = {name: server.url for name, server in servers.items()}
    given = json.dumps({**urls, "texts": SENT, "query": QUERY})
    environ = {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}  # offline, huggingface_hub refuses any address
    return dict(json.loads(run_in(CLIENTS, [PROGRAM], given=given, environ=environ)))


def answer(outcomes: Outcomes, name: str) -> Any:  # noqa: ANN401 - JSON
    """The reply that a client got. Fails with the client's traceback if it raised."""
    assert "fault" not in outcomes[name], outcomes[name]["fault"]
    return outcomes[name]["answer"]


def ranked(server: Server, **options: object) -> Scores:
    """What `/rerank` answers."""
    reply = server.post("/rerank", {"query": QUERY, "texts": SENT, **options})
    assert reply.status_code == 200, reply.text
    return [(item["index"], item["score"]) for item in reply.json()]


def same(actual: Scores, expected: Scores) -> None:
    """The same documents in the same order, with the same scores but for rounding."""
    assert [index for index, _ in actual] == [index for index, _ in expected]
    assert np.allclose([score for _, score in actual], [score for _, score in expected], atol=NEAR)


@pytest.mark.parametrize(
    "client",
    [
        "infinity_embeddings",
        "infinity_embeddings_async",
        "langchain_infinity",
        "langchain_infinity_async",
        "langchain_tei",
        "langchain_tei_async",
    ],
)
def test_clients_get_the_servers_vectors(servers: dict[str, Server], outcomes: Outcomes, client: str) -> None:
    expected: Rows = np.array(servers["embedder"].post("/embed", {"inputs": SENT}).json(), np.float32)
    compare(np.array(answer(outcomes, client), np.float32), expected, F32)


@pytest.mark.parametrize("client", ["infinity_rerank", "langchain_infinity_rerank"])
def test_clients_get_the_servers_order(servers: dict[str, Server], outcomes: Outcomes, client: str) -> None:
    found = answer(outcomes, client)
    same([(index, score) for index, score, _ in found], ranked(servers["ranker"])[:BEST])
    assert [text for *_, text in found] == [SENT[index] for index, *_ in found]


def test_raw_scores_of_documents(servers: dict[str, Server], outcomes: Outcomes) -> None:
    found = [(index, score) for index, score in answer(outcomes, "infinity_rerank_raw")]
    same(found, ranked(servers["ranker"], raw_scores=True))


@pytest.mark.parametrize(("client", "raw"), [("infinity_classify", False), ("infinity_classify_raw", True)])
def test_clients_get_the_servers_labels(servers: dict[str, Server], outcomes: Outcomes, client: str, raw: bool) -> None:
    body = {"inputs": [[text] for text in SENT], "raw_scores": raw}
    expected = servers["classifier"].post("/predict", body).json()
    for found, labels in zip(answer(outcomes, client), expected, strict=True):
        assert [label for label, _ in found] == [item["label"] for item in labels]
        assert np.allclose([score for _, score in found], [item["score"] for item in labels], atol=NEAR)


def test_infinity_reads_models_and_health(outcomes: Outcomes) -> None:
    assert answer(outcomes, "infinity_models") == [NAME]
    assert answer(outcomes, "infinity_health") > 1e9  # seconds since 1970


def test_infinity_reads_a_refusal(outcomes: Outcomes) -> None:
    assert answer(outcomes, "infinity_refusal") == 424  # a classifier gives no vectors
