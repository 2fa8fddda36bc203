"""Unmodified clients that ask for vectors: those of Baseten, Cohere, Hugging Face, LangChain, LlamaIndex and Haystack.

Each is compared with what `/embed` answers to the same texts. `openai` has a file of its own. The frameworks take
seconds to import: the functions that use them import them.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cohere
import httpx
import numpy as np
import openai
import pytest
import requests
import tiktoken
from baseten_performance_client import PerformanceClient
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from pydantic import SecretStr

from bei_core.tasks import Rows, l2_normalize
from tests.e2e.server import REFERENCE, SHORT, TEXTS, Server, log_shown
from tests.golden.cases import GOLDEN
from tests.golden.tolerance import F32, compare

if TYPE_CHECKING:
    from haystack.components.embedders import OpenAITextEmbedder
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPITextEmbedder
    from langchain_openai import OpenAIEmbeddings
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding  # type: ignore[import-untyped]
    from llama_index.embeddings.text_embeddings_inference import (  # type: ignore[import-untyped]
        TextEmbeddingsInference,
    )

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # it sends from the moment of its import

# The frameworks leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

KEY = "any"
NUM_MANY = [2_000, pytest.param(20_000, marks=pytest.mark.long)]  # texts
SENT = [TEXTS[index] for index in SHORT[:70]]  # more than any of these clients puts into one request by itself

Embedder: TypeAlias = Callable[[str, list[str]], object]  # a server's address and texts to a row a text
AsyncEmbedder: TypeAlias = Callable[[str, list[str]], Awaitable[object]]


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect garbage, so that what these clients leave open is reported here and not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def sent_rows(_running: Server) -> Rows:
    """f32[70, D] of `/embed` for SENT."""
    return direct(_running, SENT)


@pytest.fixture
def tiny(server_of: Callable[[Path], Server]) -> Iterator[Server]:
    """A server of a very small model."""
    with log_shown(server_of(GOLDEN / "bert-cls-normalize")) as server:
        yield server


def direct(server: Server, texts: Sequence[str], **options: object) -> Rows:
    """f32[N, D] of `/embed`."""
    reply = server.post("/embed", {"inputs": list(texts), **options})
    assert reply.status_code == 200, reply.text
    return np.array(reply.json(), np.float32)


def baseten(url: str, texts: list[str]) -> object:
    return PerformanceClient(base_url=url, api_key=KEY).embed(input=texts, model="m").numpy()


def baseten_post(url: str, texts: list[str]) -> object:
    payloads = [{"inputs": texts[at : at + 7]} for at in range(0, len(texts), 7)]
    reply = PerformanceClient(base_url=url, api_key=KEY).batch_post(url_path="/embed", payloads=payloads)
    return np.concatenate(reply.data)


def hugging_face(url: str, texts: list[str]) -> object:
    return InferenceClient(model=url).feature_extraction(texts)


def langchain_client(url: str, *, send_text: bool = True, dimensions: int | None = None) -> OpenAIEmbeddings:
    from langchain_openai import OpenAIEmbeddings

    return OpenAIEmbeddings(
        base_url=f"{url}/v1",
        api_key=SecretStr(KEY),
        chunk_size=32,
        dimensions=dimensions,
        check_embedding_ctx_length=not send_text,
    )


def langchain(url: str, texts: list[str]) -> object:
    client = langchain_client(url)
    return [*client.embed_documents(texts[1:]), client.embed_query(texts[0])]


def llama_index_openai_client(url: str) -> OpenAILikeEmbedding:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    return OpenAILikeEmbedding(model_name="m", api_base=f"{url}/v1", api_key=KEY, embed_batch_size=32)


def llama_index_openai(url: str, texts: list[str]) -> object:
    client = llama_index_openai_client(url)
    return [*client.get_text_embedding_batch(texts[1:]), client.get_query_embedding(texts[0])]


def llama_index_tei_client(url: str) -> TextEmbeddingsInference:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    return TextEmbeddingsInference(model_name="m", base_url=url)


def llama_index_tei(url: str, texts: list[str]) -> object:
    client = llama_index_tei_client(url)
    return [*client.get_text_embedding_batch(texts[1:]), client.get_query_embedding(texts[0])]


def haystack_openai_options(url: str) -> dict[str, Any]:
    from haystack.utils import Secret

    return {"api_key": Secret.from_token(KEY), "api_base_url": f"{url}/v1", "model": "m"}


def haystack_openai_query_client(url: str) -> OpenAITextEmbedder:
    from haystack.components.embedders import OpenAITextEmbedder

    return OpenAITextEmbedder(**haystack_openai_options(url))


def haystack_openai(url: str, texts: list[str]) -> object:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder

    documents = OpenAIDocumentEmbedder(**haystack_openai_options(url), progress_bar=False)
    found = documents.run([Document(content=text) for text in texts[1:]])["documents"]
    query = haystack_openai_query_client(url).run(texts[0])["embedding"]
    return [*(item.embedding for item in found), query]


def haystack_tei_options(url: str) -> dict[str, Any]:
    from haystack.utils import Secret

    return {"api_params": {"url": url}, "token": Secret.from_token(KEY), "normalize": True}  # it says false otherwise


def haystack_tei_query_client(url: str) -> HuggingFaceAPITextEmbedder:
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPITextEmbedder

    return HuggingFaceAPITextEmbedder("text_embeddings_inference", **haystack_tei_options(url))


def haystack_tei(url: str, texts: list[str]) -> object:
    from haystack import Document
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder

    options = haystack_tei_options(url)
    documents = HuggingFaceAPIDocumentEmbedder("text_embeddings_inference", **options, progress_bar=False)
    found = documents.run([Document(content=text) for text in texts[1:]])["documents"]
    query = haystack_tei_query_client(url).run(texts[0])["embedding"]
    return [*(item.embedding for item in found), query]


# Those of frameworks embed the first text as a query, which goes another way, and give its row last.
QUERY_LAST = [langchain, llama_index_openai, llama_index_tei, haystack_openai, haystack_tei]


@pytest.mark.parametrize("client", [baseten, baseten_post, hugging_face])
def test_clients_get_the_servers_vectors(bei: Server, client: Embedder, sent_rows: Rows) -> None:
    compare(np.array(client(bei.url, SENT), np.float32), sent_rows, bei.tolerance())


@pytest.mark.parametrize("client", QUERY_LAST)
def test_frameworks_get_the_servers_vectors(bei: Server, client: Embedder, sent_rows: Rows) -> None:
    compare(np.array(client(bei.url, SENT), np.float32), np.roll(sent_rows, -1, axis=0), bei.tolerance())


async def baseten_async(url: str, texts: list[str]) -> object:
    return (await PerformanceClient(base_url=url, api_key=KEY).async_embed(input=texts, model="m")).numpy()


async def hugging_face_async(url: str, texts: list[str]) -> object:
    async with AsyncInferenceClient(model=url) as client:
        return await client.feature_extraction(texts)


async def langchain_async(url: str, texts: list[str]) -> object:
    return await langchain_client(url).aembed_documents(texts)


async def llama_index_openai_async(url: str, texts: list[str]) -> object:
    return await llama_index_openai_client(url).aget_text_embedding_batch(texts)


async def llama_index_tei_async(url: str, texts: list[str]) -> object:
    return await llama_index_tei_client(url).aget_text_embedding_batch(texts)


async def haystack_openai_async(url: str, texts: list[str]) -> object:
    client = haystack_openai_query_client(url)
    return [(await client.run_async(text))["embedding"] for text in texts]


async def haystack_tei_async(url: str, texts: list[str]) -> object:
    client = haystack_tei_query_client(url)
    found = await asyncio.gather(*(client.run_async(text) for text in texts))
    return [item["embedding"] for item in found]


@pytest.mark.parametrize(
    "client",
    [
        baseten_async,
        hugging_face_async,
        pytest.param(langchain_async, marks=pytest.mark.long),
        pytest.param(llama_index_openai_async, marks=pytest.mark.long),
        pytest.param(llama_index_tei_async, marks=pytest.mark.long),
        pytest.param(haystack_openai_async, marks=pytest.mark.long),
        pytest.param(haystack_tei_async, marks=pytest.mark.long),
    ],
)
async def test_async_clients_get_the_servers_vectors(bei: Server, client: AsyncEmbedder, sent_rows: Rows) -> None:
    compare(np.array(await client(bei.url, SENT), np.float32), sent_rows, bei.tolerance())


class ModelsTokens:
    """What LangChain takes for OpenAI's tokenizer, which it would download: that of the model."""

    def __init__(self) -> None:
        self.ids: dict[str, list[int]] = dict(
            zip(REFERENCE.texts, (ids.tolist() for ids in REFERENCE.ids), strict=True)
        )

    def encode_ordinary(self, text: str) -> list[int]:
        return self.ids[text]


def test_langchain_may_send_token_ids(bei: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids are LangChain's default, and right only with the model's own tokenizer."""
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: ModelsTokens())
    client = langchain_client(bei.url, send_text=False)
    chosen = [text for text in SENT if "\n" not in text]  # it would take the line's end away before it encodes
    compare(np.array(client.embed_documents(chosen), np.float32), direct(bei, chosen), bei.tolerance())


def test_langchain_asks_for_fewer_dimensions(bei: Server) -> None:
    rows = langchain_client(bei.url, dimensions=64).embed_documents(SENT)
    compare(np.array(rows, np.float32), direct(bei, SENT, dimensions=64), bei.tolerance())


def test_hugging_faces_options(bei: Server) -> None:
    client = InferenceClient(model=bei.url)
    compare(client.feature_extraction(SENT[0]), direct(bei, SENT[:1]), bei.tolerance())
    raw = client.feature_extraction(SENT[:9], normalize=False)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=0.1)
    compare(l2_normalize(raw), direct(bei, SENT[:9]), bei.tolerance())
    long = " ".join(["red"] * 300 + ["blue"] * 300)
    for side in ("left", "right"):
        cut = client.feature_extraction(long, truncate=True, truncation_direction=side)
        compare(cut, direct(bei, [long], truncation_direction=side), bei.tolerance())


def test_hugging_faces_similarity(bei: Server, sent_rows: Rows) -> None:
    found = InferenceClient(model=bei.url).sentence_similarity(SENT[0], SENT[1:])
    assert np.allclose(found, sent_rows[1:] @ sent_rows[0], atol=5e-3)


def test_performance_client_reports_usage(bei: Server) -> None:
    reply = PerformanceClient(base_url=bei.url, api_key=KEY).embed(input=SENT, model="m")
    assert [item.index for item in reply.data] == list(range(len(SENT)))
    num_tokens = sum(len(REFERENCE.ids[index]) for index in SHORT[:70])
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == num_tokens
    assert all(headers["x-compute-type"].startswith("cpu+") for headers in reply.response_headers)


@pytest.mark.parametrize("num_texts", NUM_MANY)
def test_performance_client_embeds_many(tiny: Server, num_texts: int) -> None:
    """Many texts at the client's own concurrency: each is answered once and in order, none is refused or retried."""
    texts = [f"{index} {TEXTS[index % len(TEXTS)][:12]}" for index in range(num_texts)]
    before = tiny.metrics()
    reply = PerformanceClient(base_url=tiny.url, api_key=KEY).embed(input=texts, model="m")
    after = tiny.metrics()
    assert [item.index for item in reply.data] == list(range(num_texts))
    asked = len(reply.individual_request_times or ())
    assert after["te_request_success"] - before.get("te_request_success", 0) == asked
    assert after.get("te_request_failure", 0) == before.get("te_request_failure", 0)
    chosen = np.random.default_rng(0).choice(num_texts, 500, replace=False)
    compare(reply.numpy()[chosen], direct(tiny, [texts[index] for index in chosen]), F32)


def test_errors_are_the_clients_own(bei: Server) -> None:
    with pytest.raises(requests.HTTPError, match="Empty"):
        PerformanceClient(base_url=bei.url, api_key=KEY).embed(input=["a", ""], model="m")
    with pytest.raises(HfHubHTTPError, match="empty") as raised:
        InferenceClient(model=bei.url).feature_extraction("")
    assert raised.value.response.status_code == 400
    with pytest.raises(openai.BadRequestError, match="empty"):
        langchain_client(bei.url).embed_documents([""])
    with pytest.raises(HfHubHTTPError, match="empty"):
        haystack_tei(bei.url, ["", "a"])


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(bei: Server) -> None:
    body = httpx.Request("POST", "http://a", json={"inputs": SENT}).content
    command = [
        "curl",
        "-sS",
        "--fail",
        f"{bei.url}/embed",
        "-H",
        "content-type: application/json",
        "--data-binary",
        "@-",
    ]
    output = subprocess.run([*command, "--compressed"], input=body, capture_output=True, check=True).stdout
    plain = subprocess.run(command, input=body, capture_output=True, check=True).stdout
    for reply in (output, plain):
        rows = np.array(httpx.Response(200, content=reply).json(), np.float32)
        compare(rows, direct(bei, SENT), bei.tolerance())


def by_cohere(reply: Any) -> list[Any]:  # noqa: ANN401 - a union of Cohere's classes
    return [reply.embeddings.float_, reply.embeddings.int8, reply.embeddings.ubinary, reply.embeddings.base64]


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # by the client itself
@pytest.mark.parametrize("make", [cohere.Client, cohere.ClientV2])
def test_coheres_clients_get_every_type(tiny: Server, make: Callable[..., Any]) -> None:
    types = ["float", "int8", "ubinary", "base64"]
    client, texts = make(KEY, base_url=tiny.url), SENT[:5]
    reply = client.embed(texts=texts, model="m", input_type="search_document", embedding_types=types)
    floats, bytes_, bits, encoded = by_cohere(reply)
    compare(np.array(floats, np.float32), direct(tiny, texts), F32)
    assert (np.unpackbits(np.array(bits, np.uint8), axis=1)[:, : len(floats[0])] == (np.array(floats) > 0)).all()
    assert np.abs(bytes_).max(axis=1).tolist() == [127] * 5
    assert np.array_equal([np.frombuffer(base64.b64decode(text), "<f4") for text in encoded], np.float32(floats))
    assert reply.response_type == "embeddings_by_type"
    assert reply.texts == texts


def test_coheres_first_client_gets_numbers_by_default(tiny: Server) -> None:
    reply = cohere.Client(KEY, base_url=tiny.url).embed(texts=SENT[:5], model="m", truncate="START")
    assert reply.response_type == "embeddings_floats"
    compare(np.array(reply.embeddings, np.float32), direct(tiny, SENT[:5], truncation_direction="Left"), F32)


def test_coheres_second_client_sends_inputs_and_gets_an_error_for_images(tiny: Server) -> None:
    client = cohere.ClientV2(KEY, base_url=tiny.url)
    inputs = [{"content": [{"type": "text", "text": text}]} for text in SENT[:5]]
    reply = client.embed(inputs=inputs, model="m", input_type="search_query", output_dimension=8)  # type: ignore[arg-type]
    assert np.array(reply.embeddings.float_).shape == (5, 8)
    with pytest.raises(cohere.UnprocessableEntityError, match="images are not supported"):
        client.embed(images=["data:image/png;base64,AA=="], model="m", input_type="image")
