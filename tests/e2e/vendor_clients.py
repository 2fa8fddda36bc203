"""Runs in .venv-clients-vendors: clients of other vendors' APIs, unmodified, and litellm's providers of them.

Reads {"embedder", "ranker", "classifier": addresses of servers, "texts", "query", "model"} and prints, by the name of
each function in CALLS, {"answer"} or {"fault"}.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any, TypeAlias

import chromadb.utils.embedding_functions as chroma  # type: ignore[import-not-found]
import litellm  # type: ignore[import-not-found]
import mixedbread  # type: ignore[import-not-found]
import ollama  # type: ignore[import-not-found]
import tei_client  # type: ignore[import-not-found]
import voyageai  # type: ignore[import-not-found]
from langchain_cohere import CohereEmbeddings, CohereRerank  # type: ignore[import-not-found]
from langchain_core.documents import Document  # type: ignore[import-not-found,unused-ignore]
from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings, NVIDIARerank  # type: ignore[import-not-found]

Given: TypeAlias = Any  # what was read
Call: TypeAlias = Callable[[Given], object]
BEST = 5
KEY = "any"

# litellm's providers by the end of the address that each takes.
EMBEDDERS = {
    "cohere": "/v2/embed",
    "hosted_vllm": "/v1",
    "infinity": "",
    "jina_ai": "/v1",
    "nvidia_nim": "/v1",
    "ollama": "",
    "openai": "/v1",
    "openai_like": "/v1",
    "voyage": "/v1",
}
RANKERS = {
    "cohere": "",
    "hosted_vllm": "",
    "huggingface": "",
    "infinity": "/infinity",
    "jina_ai": "",
    "nvidia_nim": "",
    "nvidia_nim/ranking": "",
    "voyage": "/voyage",
}


def litellm_embed(given: Given, provider: str, path: str, **options: object) -> object:
    name, address = f"{provider}/{given['model']}", given["embedder"] + path
    found = litellm.embedding(name, input=given["texts"], api_base=address, api_key=KEY, **options)
    return [item["embedding"] for item in found.data]


def litellm_rerank(given: Given, provider: str, path: str) -> object:
    name, address = f"{provider}/{given['model']}", given["ranker"] + path
    options = {"query": given["query"], "documents": given["texts"], "top_n": BEST}
    found = litellm.rerank(name, api_base=address, api_key=KEY, **options)
    return [[item["index"], item["relevance_score"], item["document"]["text"]] for item in found.results]


def voyage_embed(given: Given) -> object:
    found = voyageai.Client(KEY, base_url=f"{given['embedder']}/v1").embed(
        given["texts"], given["model"], input_type="document"
    )
    return found.embeddings


def voyage_embed_int8(given: Given) -> object:
    found = voyageai.Client(KEY, base_url=f"{given['embedder']}/v1").embed(
        given["texts"], given["model"], output_dtype="int8", output_dimension=8
    )
    return found.embeddings


def voyage_rerank(given: Given) -> object:
    client = voyageai.Client(KEY, base_url=f"{given['ranker']}/v1")
    found = client.rerank(given["query"], given["texts"], "any", top_k=BEST)
    assert found.total_tokens > 0
    return [[item.index, item.relevance_score, item.document] for item in found.results]


def voyage_rerank_all(given: Given) -> object:
    found = voyageai.Client(KEY, base_url=f"{given['ranker']}/v1").rerank(given["query"], given["texts"], "any")
    return [[item.index, item.relevance_score, item.document] for item in found.results]


def mixedbread_embed(given: Given) -> object:
    found = mixedbread.Mixedbread(api_key=KEY, base_url=given["embedder"]).embed(
        model=given["model"], input=given["texts"], normalized=True
    )
    return [item.embedding for item in found.data]


def mixedbread_rerank(given: Given) -> object:
    found = mixedbread.Mixedbread(api_key=KEY, base_url=given["ranker"]).rerank(
        model="any", query=given["query"], input=given["texts"], top_k=BEST, return_input=True
    )
    assert (found.object, found.top_k, found.return_input) == ("list", BEST, True)
    return [[item.index, item.score, item.input] for item in found.data]


def ollama_embed(given: Given) -> object:
    return ollama.Client(given["embedder"]).embed(given["model"], given["texts"]).embeddings


def ollama_list(given: Given) -> object:
    return [model.model for model in ollama.Client(given["embedder"]).list().models]


def tei_info(given: Given) -> object:
    infos = (tei_client.HttpClient(given[name]).info() for name in ("embedder", "ranker", "classifier"))
    return [info.server_model_type for info in infos]


def tei_embed(given: Given) -> object:
    return tei_client.HttpClient(given["embedder"]).embed(given["texts"], truncate=True)


def tei_rerank(given: Given) -> object:
    found = tei_client.HttpClient(given["ranker"]).rerank(
        given["query"], given["texts"], return_text=True, truncate=True
    )
    return [[item.index, item.score, item.text] for item in found.ranks]


def tei_classify(given: Given) -> object:
    found = tei_client.HttpClient(given["classifier"]).classify(given["texts"], truncate=True)
    return [[[item.label, item.score] for item in labels.scores] for labels in found]


def tei_tokens(given: Given) -> object:
    client = tei_client.HttpClient(given["embedder"])
    ids = [found.get_ids() for found in client.tokenize(given["texts"])]
    return [ids, client.decode(ids)]


def tei_prompts(given: Given) -> object:
    return tei_client.HttpClient(given["embedder"]).prompt_names()


def chroma_openai(given: Given) -> object:
    embed = chroma.OpenAIEmbeddingFunction(KEY, given["model"], api_base=f"{given['embedder']}/v1")
    return [row.tolist() for row in embed(given["texts"])]


def chroma_hugging_face(given: Given) -> object:
    embed = chroma.HuggingFaceEmbeddingServer(url=f"{given['embedder']}/embed")
    return [row.tolist() for row in embed(given["texts"])]


def chroma_ollama(given: Given) -> object:
    embed = chroma.OllamaEmbeddingFunction(url=given["embedder"], model_name=given["model"])
    return [row.tolist() for row in embed(given["texts"])]


def langchain_cohere(given: Given) -> object:
    client = CohereEmbeddings(model=given["model"], cohere_api_key=KEY, base_url=given["embedder"], max_retries=1)
    return client.embed_documents(given["texts"])


def langchain_cohere_rerank(given: Given) -> object:
    return _compressed(given, CohereRerank(model="any", cohere_api_key=KEY, base_url=given["ranker"], top_n=BEST))


def langchain_nvidia(given: Given) -> object:
    client = NVIDIAEmbeddings(model=given["model"], base_url=f"{given['embedder']}/v1", truncate="END")
    return client.embed_documents(given["texts"])


def langchain_nvidia_query(given: Given) -> object:
    return [NVIDIAEmbeddings(model=given["model"], base_url=f"{given['embedder']}/v1").embed_query(given["query"])]


def langchain_nvidia_rerank(given: Given) -> object:
    ranker = NVIDIARerank(model=given["model"], base_url=f"{given['ranker']}/v1", top_n=BEST, truncate="END")
    return _compressed(given, ranker)


def _compressed(given: Given, ranker: Any) -> object:  # noqa: ANN401 - of one of LangChain's classes
    documents = [Document(text, metadata={"index": index}) for index, text in enumerate(given["texts"])]
    found = ranker.compress_documents(documents, given["query"])
    return [[item.metadata["index"], item.metadata["relevance_score"], item.page_content] for item in found]


CALLS: dict[str, Call] = {
    **{f"litellm_{name}": partial(litellm_embed, provider=name, path=path) for name, path in EMBEDDERS.items()},
    **{f"litellm_{name}_rerank": partial(litellm_rerank, provider=name, path=path) for name, path in RANKERS.items()},
    "litellm_voyage_8": partial(litellm_embed, provider="voyage", path="/v1", dimensions=8),
    **{
        call.__name__: call
        for call in (
            voyage_embed,
            voyage_embed_int8,
            voyage_rerank,
            voyage_rerank_all,
            mixedbread_embed,
            mixedbread_rerank,
            ollama_embed,
            ollama_list,
            tei_info,
            tei_embed,
            tei_rerank,
            tei_classify,
            tei_tokens,
            tei_prompts,
            chroma_openai,
            chroma_hugging_face,
            chroma_ollama,
            langchain_cohere,
            langchain_cohere_rerank,
            langchain_nvidia,
            langchain_nvidia_query,
            langchain_nvidia_rerank,
        )
    },
}


def outcome(call: Call, given: Given) -> dict[str, object]:
    """The answer, or what went wrong, so that one client's fault is not the others'."""
    try:
        return {"answer": call(given)}
    except Exception:
        return {"fault": traceback.format_exc()}


if __name__ == "__main__":
    GIVEN = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # litellm prints advice where something fails
        OUTCOMES = {name: outcome(call, GIVEN) for name, call in CALLS.items()}
    print(json.dumps(OUTCOMES))
