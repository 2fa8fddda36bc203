"""Unmodified clients that ask for scores: Cohere's, Baseten's, Hugging Face's, LlamaIndex's and Haystack's rerankers,
classifiers and taggers. Each is compared with what the server's own routes answer to the same texts. The frameworks
take seconds to import: the functions that use them import them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cohere
import numpy as np
import pytest
import requests
from baseten_performance_client import PerformanceClient
from cohere.core.api_error import ApiError
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.e2e.server import TEXTS, Server, log_shown
from tests.golden.cases import GOLDEN

if TYPE_CHECKING:
    from haystack import Document
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # it sends from the moment of its import

# The frameworks leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

KEY = "any"
QUERY = "what is it that grows"
DOCUMENTS = TEXTS[2:27]  # more than the performance client puts into one request
BEST = 5
NUM_MANY = [2_000, pytest.param(20_000, marks=pytest.mark.long)]  # texts
CUT: dict[str, Any] = {"truncate": True}  # Baseten's client asks for no truncation where nothing is said
NEAR = 1e-4  # of f32 scores, between batches

MODELS = {
    "ranker": GOLDEN / "bert-rerank-pad7",
    "classifier": GOLDEN / "bert-topics-bf16-sharded",
    "tagger": GOLDEN / "bert-ner",
}
Scores: TypeAlias = list[tuple[int, float]]  # (index of a document, score), the best first
Labels: TypeAlias = list[tuple[str, float]]  # (label, score), the best first
Ranker: TypeAlias = Callable[[str], Scores]
AsyncRanker: TypeAlias = Callable[[str], Awaitable[Scores]]


@pytest.fixture(scope="module")
def _servers(server_of: Callable[[Path], Server]) -> Iterator[dict[str, Server]]:
    yield {name: server_of(model) for name, model in MODELS.items()}
    gc.collect()  # what the clients left open is found here, not in somebody else's test


@pytest.fixture
def ranker(_servers: dict[str, Server]) -> Iterator[Server]:
    """A server of a model with one label."""
    with log_shown(_servers["ranker"]) as server:
        yield server


@pytest.fixture
def classifier(_servers: dict[str, Server]) -> Iterator[Server]:
    """A server of a model with twelve labels, any number of which may be right."""
    with log_shown(_servers["classifier"]) as server:
        yield server


@pytest.fixture
def tagger(_servers: dict[str, Server]) -> Iterator[Server]:
    """A server of a model that labels tokens."""
    with log_shown(_servers["tagger"]) as server:
        yield server


def ranked(server: Server, **options: object) -> Scores:
    """What `/rerank` answers."""
    reply = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS, **options})
    assert reply.status_code == 200, reply.text
    return [(item["index"], item["score"]) for item in reply.json()]


def classified(server: Server, texts: list[str], **options: object) -> list[Labels]:
    """What `/predict` answers."""
    reply = server.post("/predict", {"inputs": [[text] for text in texts], **options})
    assert reply.status_code == 200, reply.text
    return [[(item["label"], item["score"]) for item in found] for found in reply.json()]


def same(actual: Sequence[tuple[Any, float]], expected: Sequence[tuple[Any, float]]) -> None:
    """The same indices or labels in the same order, with the same scores but for rounding."""
    assert [key for key, _ in actual] == [key for key, _ in expected]
    assert np.allclose([score for _, score in actual], [score for _, score in expected], atol=NEAR)


def cohere_v1(url: str) -> Scores:
    reply = cohere.Client(KEY, base_url=url).rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=BEST)
    return [(item.index, item.relevance_score) for item in reply.results]


def cohere_v1_objects(url: str) -> Scores:
    client = cohere.Client(KEY, base_url=url)
    reply = client.rerank(
        model="m",
        query=QUERY,
        documents=[{"text": text} for text in DOCUMENTS],
        rank_fields=["text"],
        top_n=BEST,
        return_documents=True,
    )
    assert [item.document and item.document.text for item in reply.results] == [
        DOCUMENTS[item.index] for item in reply.results
    ]
    return [(item.index, item.relevance_score) for item in reply.results]


def cohere_v2(url: str) -> Scores:
    reply = cohere.ClientV2(KEY, base_url=url).rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=BEST)
    return [(item.index, item.relevance_score) for item in reply.results]


def baseten(url: str) -> Scores:
    reply = PerformanceClient(base_url=url, api_key=KEY).rerank(QUERY, DOCUMENTS, return_text=True, **CUT)
    assert [item.text for item in reply.data] == [DOCUMENTS[item.index] for item in reply.data]
    best = sorted(reply.data, key=lambda item: -item.score)[:BEST]  # sorted within each of its requests only
    return [(item.index, item.score) for item in best]


def llama_index(url: str) -> Scores:
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference  # type: ignore[import-untyped]

    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(DOCUMENTS)]
    found = TextEmbeddingInference(base_url=url, top_n=BEST).postprocess_nodes(nodes, query_str=QUERY)
    return [(int(item.node.node_id), item.get_score()) for item in found]


def _haystack_ranker(url: str) -> HuggingFaceTEIRanker:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    return HuggingFaceTEIRanker(url=url, top_k=BEST, token=Secret.from_token(KEY))


def haystack(url: str) -> Scores:
    return _haystack_scores(_haystack_ranker(url).run(QUERY, _haystack_documents())["documents"])


def _haystack_documents() -> list[Document]:
    from haystack import Document

    return [Document(id=str(index), content=text) for index, text in enumerate(DOCUMENTS)]


def _haystack_scores(found: list[Document]) -> Scores:
    return [(int(item.id), item.score or 0) for item in found]


@pytest.mark.parametrize("client", [cohere_v1, cohere_v1_objects, cohere_v2, baseten, llama_index, haystack])
def test_rerankers(ranker: Server, client: Ranker) -> None:
    same(client(ranker.url), ranked(ranker)[:BEST])


async def cohere_v1_async(url: str) -> Scores:
    async with cohere.AsyncClient(KEY, base_url=url) as client:
        reply = await client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=BEST)
    return [(item.index, item.relevance_score) for item in reply.results]


async def cohere_v2_async(url: str) -> Scores:
    async with cohere.AsyncClientV2(KEY, base_url=url) as client:
        reply = await client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=BEST)
    return [(item.index, item.relevance_score) for item in reply.results]


async def baseten_async(url: str) -> Scores:
    reply = await PerformanceClient(base_url=url, api_key=KEY).async_rerank(QUERY, DOCUMENTS, **CUT)
    best = sorted(reply.data, key=lambda item: -item.score)[:BEST]
    return [(item.index, item.score) for item in best]


async def haystack_async(url: str) -> Scores:
    return _haystack_scores((await _haystack_ranker(url).run_async(QUERY, _haystack_documents()))["documents"])


@pytest.mark.parametrize("client", [cohere_v1_async, cohere_v2_async, baseten_async, haystack_async])
async def test_async_rerankers(ranker: Server, client: AsyncRanker) -> None:
    same(await client(ranker.url), ranked(ranker)[:BEST])


def test_coheres_client_reads_the_billed_units_of_a_reply(ranker: Server) -> None:
    reply = cohere.ClientV2(KEY, base_url=ranker.url).rerank(
        model="m", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=4096
    )
    assert reply.id
    assert reply.meta is not None
    assert reply.meta.billed_units is not None
    assert reply.meta.billed_units.search_units == 1
    assert sorted(item.index for item in reply.results) == list(range(len(DOCUMENTS)))


def test_raw_scores(ranker: Server, classifier: Server) -> None:
    scores = PerformanceClient(base_url=ranker.url, api_key=KEY).rerank(QUERY, DOCUMENTS, raw_scores=True, **CUT).data
    same(sorted((item.index, item.score) for item in scores), sorted(ranked(ranker, raw_scores=True)))
    (found,) = PerformanceClient(base_url=classifier.url, api_key=KEY).classify(TEXTS[2:3], raw_scores=True).data
    (expected,) = classified(classifier, TEXTS[2:3], raw_scores=True)
    same([(item.label, item.score) for item in found], expected)


def test_performance_client_classifies(classifier: Server) -> None:
    """Also if the last request has only one text."""
    reply = PerformanceClient(base_url=classifier.url, api_key=KEY).classify(DOCUMENTS, **CUT)
    assert len(DOCUMENTS) % 8 == 1
    for found, expected in zip(reply.data, classified(classifier, DOCUMENTS), strict=True):
        same([(item.label, item.score) for item in found], expected)


async def test_performance_client_classifies_async(classifier: Server) -> None:
    reply = await PerformanceClient(base_url=classifier.url, api_key=KEY).async_classify(DOCUMENTS, **CUT)
    for found, expected in zip(reply.data, classified(classifier, DOCUMENTS), strict=True):
        same([(item.label, item.score) for item in found], expected)


def test_performance_client_posts_anything(classifier: Server, tagger: Server) -> None:
    payloads = [{"inputs": text} for text in DOCUMENTS]
    reply = PerformanceClient(base_url=classifier.url, api_key=KEY).batch_post(url_path="/predict", payloads=payloads)
    for found, expected in zip(reply.data, classified(classifier, DOCUMENTS), strict=True):
        same([(item["label"], item["score"]) for item in found], expected)
    body = {"inputs": [[text] for text in DOCUMENTS]}
    (tokens,) = PerformanceClient(base_url=tagger.url, api_key=KEY).batch_post("/predict_tokens", [body]).data
    expected = tagger.post("/predict_tokens", body).json()
    assert [[token["token_id"] for token in text] for text in tokens] == [
        [token["token_id"] for token in text] for text in expected
    ]


def test_hugging_face_classifies(classifier: Server) -> None:
    (expected,) = classified(classifier, TEXTS[2:3])
    (raw,) = classified(classifier, TEXTS[2:3], raw_scores=True)
    client = InferenceClient(model=classifier.url)
    for options, wanted in (({}, expected), ({"top_k": 3}, expected[:3]), ({"function_to_apply": "none"}, raw)):
        found = client.text_classification(TEXTS[2], **options)
        same([(item.label, item.score) for item in found], wanted)


async def test_hugging_face_classifies_async(classifier: Server) -> None:
    (expected,) = classified(classifier, TEXTS[2:3])
    async with AsyncInferenceClient(model=classifier.url) as client:
        found = await client.text_classification(TEXTS[2])
    same([(item.label, item.score) for item in found], expected)


def test_hugging_face_labels_tokens(tagger: Server) -> None:
    """The best label of each token, as `/predict_tokens` has it, but for tokens that are part of no entity."""
    (tokens,) = tagger.post("/predict_tokens", {"inputs": [[TEXTS[5]]]}).json()
    best = [max(token["results"].items(), key=lambda item: item[1]) for token in tokens]
    expected = [
        (token["start"], token["end"], label, score)
        for token, (label, score) in zip(tokens, best, strict=True)
        if label != "O" and token["end"] > token["start"]
    ]
    found = InferenceClient(model=tagger.url).token_classification(TEXTS[5], aggregation_strategy="none")
    assert expected
    assert [(item.start, item.end, item.entity) for item in found] == [item[:3] for item in expected]
    assert np.allclose([item.score for item in found], [item[3] for item in expected], atol=NEAR)


async def test_hugging_face_groups_tokens(tagger: Server) -> None:
    """Groups are made of the labelled tokens, whole, in their order, and carry no prefix of one."""
    async with AsyncInferenceClient(model=tagger.url) as client:
        groups = await client.token_classification(TEXTS[5], aggregation_strategy="simple")
        tokens = await client.token_classification(TEXTS[5], aggregation_strategy="none")
    for token in tokens:
        (group,) = [group for group in groups if group.start <= token.start < token.end <= group.end]
        assert token.entity is not None
        assert group.entity_group == token.entity.partition("-")[2]
    assert [group.start for group in groups] == sorted(group.start for group in groups)
    assert {group.start for group in groups} | {group.end for group in groups} <= (
        {token.start for token in tokens} | {token.end for token in tokens}
    )


@pytest.mark.parametrize("kind", ["rerank", "classify"])
@pytest.mark.parametrize("num_texts", NUM_MANY)
def test_performance_client_takes_many(ranker: Server, classifier: Server, kind: str, num_texts: int) -> None:
    """Many texts at the client's own concurrency: each is answered once and in order, none is refused or retried."""
    texts = [f"{index} {TEXTS[index % len(TEXTS)][:12]}" for index in range(num_texts)]
    server = ranker if kind == "rerank" else classifier
    chosen = np.random.default_rng(0).choice(num_texts, 500, replace=False).tolist()
    sample = [texts[index] for index in chosen]
    client, before = PerformanceClient(base_url=server.url, api_key=KEY), server.metrics()
    reply: Any = client.rerank(QUERY, texts) if kind == "rerank" else client.classify(texts)
    after, data = server.metrics(), reply.data  # a copy each time that it is asked for
    assert after["te_request_success"] - before.get("te_request_success", 0) == len(reply.individual_request_times)
    assert after.get("te_request_failure", 0) == before.get("te_request_failure", 0)
    if kind == "rerank":
        scores = {item.index: item.score for item in data}
        assert sorted(item.index for item in data) == list(range(num_texts))
        same([(place, scores[index]) for place, index in enumerate(chosen)], sorted(ranked(server, texts=sample)))
    else:
        assert len(data) == num_texts
        for index, expected in zip(chosen, classified(server, sample), strict=True):
            same([(item.label, item.score) for item in data[index]], expected)


def test_errors_are_the_clients_own(ranker: Server, classifier: Server, tagger: Server) -> None:
    for client in (cohere.Client(KEY, base_url=ranker.url), cohere.ClientV2(KEY, base_url=ranker.url)):
        with pytest.raises(cohere.BadRequestError, match="`documents` cannot be empty"):
            client.rerank(model="m", query=QUERY, documents=[])
        with pytest.raises(cohere.UnprocessableEntityError, match="top_n"):
            client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=-1)
    with pytest.raises(ApiError) as raised:
        cohere.ClientV2(KEY, base_url=tagger.url).rerank(model="m", query=QUERY, documents=DOCUMENTS)
    assert raised.value.status_code == 424
    with pytest.raises(requests.HTTPError, match="Empty"):
        PerformanceClient(base_url=ranker.url, api_key=KEY).rerank("", ["a", ""])
    for server, ask in ((classifier, "text_classification"), (tagger, "token_classification")):
        with pytest.raises(HfHubHTTPError, match="empty") as refused:
            getattr(InferenceClient(model=server.url), ask)("")
        assert refused.value.response.status_code == 400
    with pytest.raises(RuntimeError, match="Backend"):
        haystack(classifier.url)
