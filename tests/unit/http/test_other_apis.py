"""Embeddings by Cohere's and Ollama's routes, compared with `/embed`; a model by its name."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.fakes import WIDTH, FakeEngine
from tests.unit.http.test_embedding_apis import LONG, MODEL, PROMPTS, TEXTS, ask, client_of, embed, same, vectors

V1, V2 = "/v1/embed", "/v2/embed"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_seq_len=48)


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async for each in client_of(PROMPTS, engine):
        yield each


async def test_v1_replies_with_lists_of_numbers(client: httpx.AsyncClient) -> None:
    reply = await ask(client, V1, texts=TEXTS, model="m")
    assert (reply["response_type"], reply["texts"]) == ("embeddings_floats", TEXTS)
    assert same(reply["embeddings"], await embed(client))
    assert reply["meta"]["api_version"] == {"version": "1"}
    assert reply["meta"]["billed_units"]["input_tokens"] > len(TEXTS)


@pytest.mark.parametrize("path", [V1, V2])
async def test_types(client: httpx.AsyncClient, path: str) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    reply = await ask(client, path, texts=TEXTS, input_type="search_document", embedding_types=types)
    assert reply["response_type"] == "embeddings_by_type"
    found = reply["embeddings"]
    assert list(found) == types
    assert same(found["float"], await embed(client, prompt_name="passage"))
    for name in types[1:5]:
        assert found[name] == await vectors(client, input_type="document", output_dtype=name)
    decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in found["base64"]]
    assert np.array_equal(decoded, np.array(found["float"], np.float32))


async def test_v2_replies_by_type_always(client: httpx.AsyncClient) -> None:
    reply = await ask(client, V2, texts=TEXTS, model="m", input_type="search_query", output_dimension=4)
    assert list(reply["embeddings"]) == ["float"]
    assert same(reply["embeddings"]["float"], await embed(client, prompt_name="query", dimensions=4))
    assert reply["meta"]["api_version"] == {"version": "2"}


@pytest.mark.parametrize(("path", "body"), [(V2, {"texts": TEXTS}), ("/v1/embeddings", {"input": TEXTS})])
async def test_a_wrong_number_of_dimensions_is_refused_by_the_name_that_was_given(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    reply = await client.post(path, json={**body, "output_dimension": 5000})
    assert reply.status_code == 422
    assert f"`output_dimension` must be between 1 and {WIDTH}, got 5000" in reply.text


async def test_an_unknown_value_is_refused_with_those_that_are_known(client: httpx.AsyncClient) -> None:
    for path, body, message in (
        (
            "/v1/embeddings",
            {"input": "a", "encoding_format": "hex"},
            "'hex' - at `$.encoding_format`; known are float, base64",
        ),
        (V2, {"texts": ["a"], "embedding_types": ["hex"]}, "'hex' - at `$.embedding_types[0]`; known are float, int8"),
        ("/embed", {"inputs": "a", "truncate": "MIDDLE"}, "'MIDDLE' - at `$.truncate`; known are NONE, START, END"),
        (
            "/embed",
            {"inputs": "a", "parameters": {"truncation": "only_first"}},
            "'only_first' - at `$.parameters.truncation`; known are longest_first, do_not_truncate",
        ),
        (
            "/embed",
            {"inputs": "a", "parameters": {"normalize": False}},
            "unknown field `normalize` - at `$.parameters`; known are truncation, max_length, padding",
        ),
    ):
        reply = await client.post(path, json=body)
        assert reply.status_code == 422
        assert message in reply.text


async def test_v2_takes_inputs_of_one_text_each(client: httpx.AsyncClient) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    reply = await ask(client, V2, inputs=inputs, input_type="clustering")
    assert same(reply["embeddings"]["float"], await embed(client, prompt_name="clustering"))


async def test_truncation(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for options, length in (({}, 48), ({"truncate": "END"}, 48), ({"truncate": "START", "max_tokens": 5}, 5)):
        engine.batches.clear()
        await ask(client, V2, texts=[LONG], **options)
        assert [len(ids) for ids in engine.seen] == [length]
    assert (await client.post(V2, json={"texts": [LONG], "truncate": "NONE"})).status_code == 422


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"images": ["data:image/png;base64,AA=="], "input_type": "image"}, "images"),
        ({"texts": ["a"], "input_type": "image"}, "input_type"),
        ({"inputs": [{"content": [IMAGE]}]}, "content"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}, IMAGE]}]}, "content"),
        ({}, "texts"),
        ({"texts": ["a"], "inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "texts"),
        ({"texts": ["a"], "embedding_types": ["int4"]}, "embedding_types"),
        ({"texts": ["a"], "output_dimension": WIDTH + 1}, "output_dimension"),
        ({"texts": ["a"], "truncate": "MIDDLE"}, "truncate"),
        ({"texts": ["a"], "input_type": "unheard of"}, "input_type"),
    ],
    ids=str,
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    reply = await client.post(V2, json=body)
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["param"] == param
    assert param in reply.json()["error"]["message"]


async def test_no_texts_and_an_empty_one(client: httpx.AsyncClient) -> None:
    bodies: list[dict[str, list[str]]] = [{"texts": []}, {"texts": [""]}]
    for body in bodies:
        reply = await client.post(V2, json=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "Empty")


async def test_ollamas_embed(client: httpx.AsyncClient) -> None:
    reply = await ask(client, "/api/embed", model="m:latest", input=TEXTS, keep_alive="5m", dimensions=4)
    assert same(reply["embeddings"], await embed(client, dimensions=4))
    assert (reply["model"], reply["load_duration"]) == ("m", 0)
    assert reply["total_duration"] > 0
    assert reply["prompt_eval_count"] > len(TEXTS)
    one = await ask(client, "/api/embed", model="m", input=TEXTS[0], options={"temperature": 0.1})
    assert same(one["embeddings"], await embed(client, TEXTS[:1]))


async def test_ollamas_older_route(client: httpx.AsyncClient) -> None:
    reply = await ask(client, "/api/embeddings", model="m", prompt=TEXTS[0])
    assert same([reply["embedding"]], await embed(client, TEXTS[:1], normalize=False))


async def test_ollamas_limits_of_tokens(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await ask(client, "/api/embed", model="m", input=LONG, options={"num_ctx": 7})
    assert [len(ids) for ids in engine.seen] == [7]
    for options in ({}, {"options": {"num_ctx": 7}}):
        reply = await client.post("/api/embed", json={"model": "m", "input": LONG, "truncate": False, **options})
        assert reply.status_code == 422
        assert reply.json().keys() == {"error"}


async def test_ollamas_models(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/api/tags")).json()["models"]
    assert (model["name"], model["model"]) == (MODEL, MODEL)
    shown = await ask(client, "/api/show", model=f"{MODEL}:latest")
    family = shown["details"]["family"]
    info = {"general.architecture": family, f"{family}.context_length": 48, f"{family}.embedding_length": WIDTH}
    assert (shown["capabilities"], shown["model_info"]) == (["embedding"], info)
    missing = await client.post("/api/show", json={"name": "another"})
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'another' not found"})
    assert (await client.get("/api/version")).json().keys() == {"version"}


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_a_model_by_its_names(client: httpx.AsyncClient, path: str) -> None:
    (listed,) = (await client.get(path)).json()["data"]
    for name in (MODEL, "owner%2Fname", "name"):
        assert (await client.get(f"{path}/{name}")).json() == listed
    missing = await client.get(f"{path}/another")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    refused = await client.delete(f"{path}/{MODEL}")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


async def test_a_slash_at_the_end_of_a_path_is_ignored(client: httpx.AsyncClient) -> None:
    reply = await client.post("/embed/", json={"inputs": TEXTS})
    assert same(reply.json(), await embed(client))
    assert (await client.get("/v1/models/")).json() == (await client.get("/v1/models")).json()


async def test_an_error_without_a_code_has_the_code_null(client: httpx.AsyncClient) -> None:
    for path, status in (("/v1/nowhere", 404), ("/v1/embeddings", 422)):
        reply = await client.post(path, json={})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, None)
