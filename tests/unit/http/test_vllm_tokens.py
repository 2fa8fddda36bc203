"""vLLM's `/tokenize` and `/detokenize`, and its option `add_special_tokens`."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.http.test_every_field import embedder


async def test_a_prompt_gets_vllms_reply_and_its_ids_are_its_text() -> None:
    async with embedder() as client:
        (tokens,) = (await client.post("/tokenize", json={"inputs": "a red cat"})).json()
        reply = (await client.post("/tokenize", json={"prompt": "a red cat", "return_token_strs": True})).json()
        plain = (await client.post("/tokenize", json={"prompt": "a red cat"})).json()
        text = (await client.post("/detokenize", json={"tokens": reply["tokens"]})).json()
        body = {"ids": reply["tokens"], "skip_special_tokens": False}
        decoded = (await client.post("/decode", json=body)).json()
    assert reply["tokens"] == [token["id"] for token in tokens]
    assert (reply["count"], reply["max_model_len"], len(reply["token_strs"])) == (len(tokens), 48, len(tokens))
    assert [reply["token_strs"][0], reply["token_strs"][-1]] == [tokens[0]["text"], tokens[-1]["text"]]
    assert plain == {**reply, "token_strs": None}
    assert text == {"prompt": decoded[0]}


@pytest.mark.parametrize("body", [{}, {"inputs": "a", "prompt": "a"}])
async def test_one_of_the_two_texts_is_needed(body: dict[str, str]) -> None:
    async with embedder() as client:
        reply = await client.post("/tokenize", json=body)
    assert (reply.status_code, "`prompt`" in reply.text) == (422, True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
async def test_without_special_tokens_a_text_is_its_own_tokens(path: str) -> None:
    async with embedder() as client:
        ids = (await client.post("/tokenize", json={"prompt": "a red cat", "add_special_tokens": False})).json()
        bodies = [{"input": "a red cat", "add_special_tokens": False}, {"input": [ids["tokens"]]}]
        found = [(await client.post(path, json=body)).json()["data"][0] for body in bodies]
    key = "embedding" if path == "/v1/embeddings" else "data"
    np.testing.assert_array_equal(found[0][key], found[1][key])
