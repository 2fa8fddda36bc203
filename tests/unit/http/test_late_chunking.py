"""Jina's `late_chunking`: each text's vector is the mean of its tokens in one pass over all texts."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from bei_core.tasks import l2_normalize
from tests.unit.http.test_every_field import embedder

LATE = {"late_chunking": True}


async def asked(client: httpx.AsyncClient, texts: object, status: int = 200, **options: object) -> Any:  # noqa: ANN401 - JSON
    reply = await client.post("/v1/embeddings", json={"input": texts, **LATE, **options})
    assert reply.status_code == status, reply.text
    return [item["embedding"] for item in reply.json()["data"]] if status == 200 else reply.json()["error"]


async def length_of(client: httpx.AsyncClient, text: str) -> int:
    """The number of a text's tokens, without special ones."""
    body = {"inputs": text, "add_special_tokens": False}
    return len((await client.post("/tokenize", json=body)).json()[0])


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["a red cat"], "a red cat"),
        (["a red cat", "the dog ran home", "rain"], "a red cat the dog ran home rain"),
        (["a red cat. ", "The dog", "\nran home"], "a red cat. The dog\nran home"),
    ],
)
@pytest.mark.parametrize("prompt", ["", "search: "])
async def test_each_text_gets_the_mean_of_its_tokens(texts: list[str], whole: str, prompt: str) -> None:
    async with embedder() as client:
        body = {"inputs": prompt + whole}
        (rows,) = (await client.post("/embed_all", json=body)).json()
        ends = np.cumsum([await length_of(client, text) for text in texts]) + 1
        starts = [0, *(ends[:-1] + (await length_of(client, prompt) if prompt else 0))]
        ends = ends + (await length_of(client, prompt) if prompt else 0)
        ends[-1] += 1
        means = [np.mean(rows[start:end], axis=0) for start, end in zip(starts, ends, strict=True)]
        given: dict[str, Any] = {"input_type": "query"} if prompt else {}
        found = await asked(client, texts, **given)
        as_they_are = await asked(client, texts, normalized=False, output_dimension=1, **given)
    np.testing.assert_allclose(found, l2_normalize(np.array(means, np.float32)), rtol=1e-5)
    np.testing.assert_allclose(as_they_are, np.array(means)[:, :1], rtol=1e-5)


@pytest.mark.parametrize(
    ("texts", "options", "param", "named"),
    [
        ([[5, 6]], {}, "input", "must hold texts"),
        (["a", ""], {}, "input", "not empty"),
        (["a", " "], {}, "input", "text 1 of `input` has no token"),
        (["a cat " * 20, "a dog " * 20], {}, "input", "too long"),
        (["a cat " * 20, "a dog " * 20], {"truncate": True, "truncation_direction": "left"}, "input", "too long"),
        (["a cat", "a dog"], {"truncate_prompt_tokens": 5}, "input", "too long"),
        (["a"], {"chunk": True}, "chunk", "excludes"),
    ],
)
async def test_what_cannot_be_read_as_one_text_is_refused(
    texts: object, options: dict[str, object], param: str, named: str
) -> None:
    async with embedder() as client:
        error = await asked(client, texts, 422, **options)
    assert (error["param"], named in error["message"]) == (param, True), error


async def counted(client: httpx.AsyncClient, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


async def test_a_large_request_that_fails_when_its_reply_is_made_counts_as_a_failure_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bei_core.http.app.INLINE_NUMBERS", 0)  # every reply is made on a thread
    async with embedder() as client:
        await asked(client, ["a", " "], 422)
        assert (await counted(client, "te_request_success"), await counted(client, "te_request_failure")) == (0, 1)
        await asked(client, ["a", "b"])
        assert (await counted(client, "te_request_success"), await counted(client, "te_request_failure")) == (1, 1)
