"""Runs in .venv-clients: Infinity's client, and LangChain's of Infinity and text-embeddings-inference, unmodified.

Reads {"embedder", "ranker", "classifier": addresses of servers, "texts", "query"} and prints, by the name of each
function in CALLS, {"answer"} or {"fault"}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

from infinity_client import Client  # type: ignore[import-not-found]
from infinity_client.api.default import classify, embeddings, health, models, rerank  # type: ignore[import-not-found]
from infinity_client.models import (  # type: ignore[import-not-found]
    ClassifyInput,
    OpenAIEmbeddingInputText,
    RerankInput,
)
from langchain_core.documents import Document  # type: ignore[import-not-found,unused-ignore]
from langchain_huggingface import HuggingFaceEndpointEmbeddings  # type: ignore[import-not-found]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that langchain-community is not looked after any more
    from langchain_community.document_compressors import InfinityRerank  # type: ignore[import-not-found]
    from langchain_community.embeddings import InfinityEmbeddings  # type: ignore[import-not-found]

Given: TypeAlias = Any  # what was read
BEST = 5


def infinity_health(given: Given) -> object:
    with Client(given["embedder"], raise_on_unexpected_status=True) as client:
        return health.sync(client=client)["unix"]


def infinity_models(given: Given) -> object:
    with Client(given["embedder"], raise_on_unexpected_status=True) as client:
        return [model.id for model in models.sync(client=client).data]


def infinity_embeddings(given: Given) -> object:
    with Client(given["embedder"], raise_on_unexpected_status=True) as client:
        found = embeddings.sync(client=client, body=OpenAIEmbeddingInputText(given["texts"]))
    return [item.embedding for item in found.data]


def infinity_embeddings_async(given: Given) -> object:
    async def ask() -> list[list[float]]:
        async with Client(given["embedder"], raise_on_unexpected_status=True) as client:
            found = await embeddings.asyncio(client=client, body=OpenAIEmbeddingInputText(given["texts"]))
        return [item.embedding for item in found.data]

    return asyncio.run(ask())


def infinity_rerank(given: Given) -> object:
    body = RerankInput(given["query"], given["texts"], return_documents=True, top_n=BEST)
    with Client(given["ranker"], raise_on_unexpected_status=True) as client:
        found = rerank.sync(client=client, body=body)
    return [[item.index, item.relevance_score, item.document] for item in found.results]


def infinity_rerank_raw(given: Given) -> object:
    body = RerankInput(given["query"], given["texts"], raw_scores=True)
    with Client(given["ranker"], raise_on_unexpected_status=True) as client:
        return [[item.index, item.relevance_score] for item in rerank.sync(client=client, body=body).results]


def infinity_classify(given: Given) -> object:
    with Client(given["classifier"], raise_on_unexpected_status=True) as client:
        found = classify.sync(client=client, body=ClassifyInput(given["texts"]))
    return [[[item.label, item.score] for item in labels] for labels in found.data]


def infinity_classify_raw(given: Given) -> object:
    with Client(given["classifier"], raise_on_unexpected_status=True) as client:
        found = classify.sync(client=client, body=ClassifyInput(given["texts"], raw_scores=True))
    return [[[item.label, item.score] for item in labels] for labels in found.data]


def infinity_refusal(given: Given) -> object:
    """The status of what is refused, as the client gives it."""
    with Client(given["classifier"]) as client:
        return embeddings.sync_detailed(client=client, body=OpenAIEmbeddingInputText(given["texts"])).status_code


def langchain_infinity(given: Given) -> object:
    client = InfinityEmbeddings(model="any", infinity_api_url=f"{given['embedder']}/v1")
    first, *others = given["texts"]
    return [client.embed_query(first), *client.embed_documents(others)]


def langchain_infinity_async(given: Given) -> object:
    client = InfinityEmbeddings(model="any", infinity_api_url=given["embedder"])
    return asyncio.run(client.aembed_documents(given["texts"]))


def langchain_infinity_rerank(given: Given) -> object:
    ranker = InfinityRerank(client=Client(given["ranker"]), model="any", top_n=BEST)
    documents = [Document(text, metadata={"index": index}) for index, text in enumerate(given["texts"])]
    found = ranker.compress_documents(documents, given["query"])
    return [[item.metadata["index"], item.metadata["relevance_score"], item.page_content] for item in found]


def langchain_tei(given: Given) -> object:
    client = HuggingFaceEndpointEmbeddings(model=given["embedder"])
    first, *others = given["texts"]
    return [client.embed_query(first), *client.embed_documents(others)]


def langchain_tei_async(given: Given) -> object:
    client = HuggingFaceEndpointEmbeddings(model=given["embedder"])
    return asyncio.run(client.aembed_documents(given["texts"]))


CALLS: tuple[Callable[[Given], object], ...] = (
    infinity_health,
    infinity_models,
    infinity_embeddings,
    infinity_embeddings_async,
    infinity_rerank,
    infinity_rerank_raw,
    infinity_classify,
    infinity_classify_raw,
    infinity_refusal,
    langchain_infinity,
    langchain_infinity_async,
    langchain_infinity_rerank,
    langchain_tei,
    langchain_tei_async,
)


def outcome(call: Callable[[Given], object], given: Given) -> dict[str, object]:
    """The answer, or what went wrong, so that one client's fault is not the others'."""
    try:
        return {"answer": call(given)}
    except Exception:
        return {"fault": traceback.format_exc()}


if __name__ == "__main__":
    GIVEN = json.load(sys.stdin)
    print(json.dumps({call.__name__: outcome(call, GIVEN) for call in CALLS}))
