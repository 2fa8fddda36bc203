"""The bodies that Elasticsearch and Weaviate send, and what their clients read in the replies.

The types are those that the clients parse: `RankedDocEntry` of Elasticsearch's HuggingFaceRerankResponseEntity (Java),
`vecRequest`, `vecBatchResponse` and `RankResponse` of Weaviate's clients (Go).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
import pytest

from tests.fakes import WIDTH, FakeEngine
from tests.unit.http.scored import RERANKER, expected, serving
from tests.unit.http.test_embedding_apis import PROMPTS, TEXTS, client_of, embed, same

ReplyT = TypeVar("ReplyT")

QUERY = "what colour"
DOCUMENTS = ["red", "a blue house", "green fields and more", "red"]
SCORES = expected([(QUERY, text) for text in DOCUMENTS], 1, "sigmoid")[:, 0]
ORDER = sorted(range(len(DOCUMENTS)), key=lambda index: (-SCORES[index], index))
PREFIXES = ["", "/weaviate"]


class RankedDoc(msgspec.Struct, forbid_unknown_fields=True):
    """Elasticsearch's; an early version refuses other fields."""

    index: int
    score: float
    text: str | None = None


class Vector(msgspec.Struct, kw_only=True):
    """Weaviate's, for one text."""

    text: str = ""
    dims: int = 0
    vector: list[float] = []
    error: str = ""


class Vectors(msgspec.Struct, kw_only=True):
    """Weaviate's, for several texts."""

    vectors: list[list[float]] = []
    dims: int = 0
    error: str = ""


class DocumentScore(msgspec.Struct):
    """Weaviate's."""

    document: str
    score: float


class Ranked(msgspec.Struct, kw_only=True):
    """Weaviate's."""

    query: str = ""
    scores: list[DocumentScore] = []
    error: str = ""


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Of an embedding model with prompts."""
    async for each in client_of(PROMPTS, FakeEngine(max_seq_len=48)):
        yield each


@pytest.fixture
async def ranker() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(RERANKER) as each:
        yield each


async def ask(client: httpx.AsyncClient, path: str, body: object, kind: type[ReplyT], status: int = 200) -> ReplyT:
    """The reply as a client reads it, in the types of its language."""
    reply = await client.post(path, content=msgspec.json.encode(body))  # Weaviate sends no content-type
    assert reply.status_code == status, reply.text
    return msgspec.json.decode(reply.content, type=kind)


def one(text: str, **config: object) -> dict[str, Any]:
    """The body for one text: Go's encoder writes every field of the struct, those of the reply too."""
    return {"text": text, "dims": 0, "vector": None, "error": "", "config": config}


# --- Elasticsearch


@pytest.mark.parametrize("path", ["/rerank", "/elastic/rerank"])
@pytest.mark.parametrize("with_text", [None, False, True])
async def test_elasticsearch_reads_a_list(ranker: httpx.AsyncClient, path: str, with_text: bool | None) -> None:
    body = {"texts": DOCUMENTS, "query": QUERY} | ({} if with_text is None else {"return_text": with_text})
    found = await ask(ranker, path, body, list[RankedDoc])
    assert [item.index for item in found] == ORDER
    np.testing.assert_allclose([item.score for item in found], SCORES[ORDER], rtol=1e-6)
    assert [item.text for item in found] == [DOCUMENTS[index] if with_text else None for index in ORDER]
    assert await ask(ranker, path, {**body, "top_n": 2}, list[RankedDoc]) == found[:2]


@pytest.mark.parametrize("with_text", [None, False, True])
async def test_elasticsearchs_documents_get_the_same_list(ranker: httpx.AsyncClient, with_text: bool | None) -> None:
    body = {"query": QUERY, "top_n": 3} | ({} if with_text is None else {"return_documents": with_text})
    found = await ask(ranker, "/elastic/rerank", {**body, "documents": DOCUMENTS}, list[RankedDoc])
    texts = {} if with_text is None else {"return_text": with_text}
    same_body = {"query": QUERY, "top_n": 3, "texts": DOCUMENTS, **texts}
    assert found == await ask(ranker, "/rerank", same_body, list[RankedDoc])


async def test_elasticsearch_reads_an_error_that_is_a_text(ranker: httpx.AsyncClient) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "max_chunks_per_doc": 3}
    assert "`max_chunks_per_doc`" in (await ask(ranker, "/elastic/rerank", body, dict[str, str], 422))["error"]


# --- Weaviate


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("task", ["query", "passage"])
async def test_weaviate_reads_one_vector(client: httpx.AsyncClient, prefix: str, task: str) -> None:
    found = await ask(client, f"{prefix}/vectors", one(TEXTS[0], pooling_strategy="cls", task_type=task), Vector)
    assert (found.text, found.dims, found.error) == (TEXTS[0], WIDTH, "")
    assert same([found.vector], await embed(client, TEXTS[:1], prompt_name=task))


async def test_weaviates_servers_path_ends_with_a_slash(client: httpx.AsyncClient) -> None:
    body = {"text": TEXTS[0]}
    reply = await ask(client, "/vectors/", body, dict[str, Any])
    assert (reply["text"], reply["dim"]) == (TEXTS[0], WIDTH)
    assert same([reply["vector"]], await embed(client, TEXTS[:1]))


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_weaviate_reads_vectors_of_several_texts(client: httpx.AsyncClient, prefix: str) -> None:
    body = {"texts": TEXTS, "config": {"task_type": "passage", "dimensions": 3}}
    found = await ask(client, f"{prefix}/vectors", body, Vectors)
    assert (found.dims, found.error) == (3, "")
    assert same(found.vectors, await embed(client, TEXTS, prompt_name="passage", dimensions=3))


@pytest.mark.parametrize(
    ("body", "named", "status"),
    [
        (
            one("a", pooling_strategy="last"),
            "`pooling_strategy` is last, and this model pools by cls",
            422,
        ),
        (one("a", task_type="other"), "`task_type`", 422),
        (one("a", dimensions=WIDTH + 1), "`dimensions`", 422),
        (one(""), "`text` cannot", 400),
        ({"texts": []}, "`texts` cannot be empty", 400),
        ({"texts": ["a", ""]}, "`texts` cannot", 400),
        ({"text": "a", "texts": ["a"]}, "either `text` or `texts`", 422),
        ({"config": {}}, "either `text` or `texts`", 422),
    ],
)
async def test_weaviate_reads_why_a_text_is_refused(
    client: httpx.AsyncClient, body: object, named: str, status: int
) -> None:
    assert named in (await ask(client, "/vectors", body, Vector, status)).error


@pytest.mark.parametrize("strategy", ["", "cls", "masked_mean"])
async def test_the_models_own_pooling_may_be_named_and_is_meant_by_weaviates_default(
    client: httpx.AsyncClient, strategy: str
) -> None:
    found = await ask(client, "/vectors", one(TEXTS[0], pooling_strategy=strategy), Vector)
    assert same([found.vector], await embed(client, TEXTS[:1]))


async def test_weaviate_finds_scores_by_the_place_of_the_document(ranker: httpx.AsyncClient) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "property": ""}
    found = await ask(ranker, "/weaviate/rerank", body, Ranked)
    assert sorted(ORDER) != ORDER, "the order of the scores is not that of the documents"
    assert (found.query, [item.document for item in found.scores]) == (QUERY, DOCUMENTS)
    np.testing.assert_allclose([item.score for item in found.scores], SCORES, rtol=1e-6)


async def test_weaviate_reads_why_documents_are_refused(ranker: httpx.AsyncClient) -> None:
    body = {"query": QUERY, "documents": [], "property": ""}
    assert (await ask(ranker, "/weaviate/rerank", body, Ranked, 400)).error == "`documents` cannot be empty"
    assert "reranker" in (await ask(ranker, "/weaviate/vectors", one("a"), Vector, 424)).error


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_what_weaviate_asks_when_it_starts(client: httpx.AsyncClient, prefix: str) -> None:
    for path in ("/.well-known/ready", "/.well-known/live"):
        assert (await client.get(prefix + path)).status_code <= 299
    assert (await client.get(f"{prefix}/meta")).json() == (await client.get("/info")).json()
