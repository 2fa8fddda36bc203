"""The unmodified `openai` client against `bei serve`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from bei_core.tasks import Rows, l2_normalize
from tests.e2e.server import LONG, MAX_TOKENS, NAME, REFERENCE, SHORT, TEXTS, WIDTH, Server, cache_of, log_shown
from tests.fakes import SAFETY_S
from tests.golden.tolerance import compare

KEY = "a key"


@pytest.fixture
def client(bei: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{bei.url}/v1", api_key="any", max_retries=0, timeout=SAFETY_S) as client:
        yield client


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key and small limits."""
    limits = {"api_key": KEY, "payload_limit": 10_000, "max_client_batch_size": 4}
    with (
        Server(tmp_path_factory.mktemp("strict") / "server", cache_of(tmp_path_factory), **limits) as server,
        log_shown(server),
    ):
        yield server


def rows_of(reply: openai.types.CreateEmbeddingResponse) -> Rows:
    """f32[N, D]"""
    assert [item.index for item in reply.data] == list(range(len(reply.data)))
    return np.array([item.embedding for item in reply.data], np.float32)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [({}, [*range(len(TEXTS))]), ({"encoding_format": "float"}, SHORT)],
    ids=["as base64", "as numbers"],
)
def test_vectors_are_the_models(bei: Server, client: openai.OpenAI, options: dict[str, Any], chosen: list[int]) -> None:
    reply = client.embeddings.create(model=NAME, input=[TEXTS[index] for index in chosen], **options)
    compare(rows_of(reply), REFERENCE.vectors[chosen], bei.tolerance())
    assert (reply.object, reply.model, reply.data[0].object) == ("list", NAME, "embedding")
    num_tokens = sum(len(REFERENCE.ids[index]) for index in chosen)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == num_tokens


async def test_the_async_client_gets_the_same_64_at_a_time(bei: Server) -> None:
    chosen = [SHORT[index % len(SHORT)] for index in range(256)]
    slots = asyncio.Semaphore(64)
    async with openai.AsyncOpenAI(base_url=f"{bei.url}/v1", api_key="any", max_retries=0, timeout=SAFETY_S) as client:

        async def ask(index: int) -> openai.types.CreateEmbeddingResponse:
            async with slots:
                return await client.embeddings.create(model="m", input=TEXTS[index])

        replies = await asyncio.gather(*map(ask, chosen))
    compare(np.concatenate([rows_of(reply) for reply in replies]), REFERENCE.vectors[chosen], bei.tolerance())
    assert [reply.usage.prompt_tokens for reply in replies] == [len(REFERENCE.ids[index]) for index in chosen]


def test_base64_and_numbers_are_the_same_bits(client: openai.OpenAI) -> None:
    as_base64 = client.embeddings.create(model="m", input=TEXTS[2])
    as_numbers = client.embeddings.create(model="m", input=TEXTS[2], encoding_format="float")
    assert np.array_equal(rows_of(as_base64), rows_of(as_numbers))


def test_base64_is_little_endian_f32(bei: Server) -> None:
    body = bei.post("/v1/embeddings", {"input": TEXTS[2], "encoding_format": "base64"}).json()
    row = np.frombuffer(base64.b64decode(body["data"][0]["embedding"], validate=True), "<f4")
    compare(row[None].astype(np.float32), REFERENCE.vectors[2:3], bei.tolerance())


def test_a_batch_gives_each_text_what_it_gets_alone(bei: Server, client: openai.OpenAI) -> None:
    together = rows_of(client.embeddings.create(model="m", input=TEXTS[:20]))
    alone = [rows_of(client.embeddings.create(model="m", input=text)) for text in TEXTS[:20]]
    compare(together, np.concatenate(alone), bei.tolerance())


@pytest.mark.parametrize("dimensions", [1, 32, WIDTH])
def test_dimensions_cut_and_normalise_again(bei: Server, client: openai.OpenAI, dimensions: int) -> None:
    reply = client.embeddings.create(model="m", input=TEXTS[:20], dimensions=dimensions)
    expected = l2_normalize(np.ascontiguousarray(REFERENCE.vectors[:20, :dimensions]))
    if dimensions == 1:  # the sign of one number is all that is left, and may be lost in rounding where it is near 0
        assert np.array_equal(np.abs(rows_of(reply)), np.ones((20, 1)))
    else:
        actual = rows_of(reply)
        # What is cut away no longer outweighs the rounding of what stays: hence the wider limit.
        assert (np.einsum("nd,nd->n", actual, expected) >= 0.999).all()
        assert np.allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "ubinary"])
def test_options_of_other_apis_go_into_the_extra_body(bei: Server, client: openai.OpenAI, kind: str) -> None:
    reply = client.embeddings.create(
        model="m", input=TEXTS[:20], encoding_format="float", extra_body={"output_dtype": kind}
    )
    found = rows_of(reply)
    if kind == "int8":
        cosines = np.einsum("nd,nd->n", l2_normalize(found), REFERENCE.vectors[:20])
        assert (cosines > 0.999).all()
    else:
        bits = np.unpackbits(found.astype(np.uint8), axis=1)
        assert (bits == (REFERENCE.vectors[:20] > 0)).mean() > 0.99  # the sign of a number near 0 may differ


def test_a_model_is_retrieved_by_its_name(client: openai.OpenAI) -> None:
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("another/model")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_2048_inputs_are_one_request_by_default(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model="m", input=["a"] * 2048).data) == 2048
    with pytest.raises(openai.UnprocessableEntityError, match="maximum allowed batch size 2048"):
        client.embeddings.create(model="m", input=["a"] * 2049)


def test_token_ids_are_used_as_they_are(bei: Server, client: openai.OpenAI) -> None:
    ids = [row.tolist() for row in REFERENCE.ids[:20]]
    several = client.embeddings.create(model="m", input=ids)
    compare(rows_of(several), REFERENCE.vectors[:20], bei.tolerance())
    one = client.embeddings.create(model="m", input=ids[2])
    compare(rows_of(one), REFERENCE.vectors[2:3], bei.tolerance())
    assert (several.usage.prompt_tokens, one.usage.prompt_tokens) == (sum(map(len, ids)), len(ids[2]))


def test_what_is_too_long_is_cut(bei: Server, client: openai.OpenAI) -> None:
    cut = client.embeddings.create(model="m", input=[LONG, LONG + "and more"])
    assert cut.usage.prompt_tokens == 2 * MAX_TOKENS
    first, second = rows_of(cut)
    compare(second[None], first[None], bei.tolerance())


@pytest.mark.parametrize("name", ["query", "passage", "document", "search_query", "search_document"])
def test_input_types_change_nothing_for_a_model_without_prompts(bei: Server, client: openai.OpenAI, name: str) -> None:
    reply = client.embeddings.create(model="m", input=TEXTS[2], extra_body={"input_type": name})
    compare(rows_of(reply), REFERENCE.vectors[2:3], bei.tolerance())


@pytest.mark.parametrize(("asked", "answered"), [("anything", "anything"), ("not-required", NAME), ("", NAME)])
def test_any_model_name_will_do(client: openai.OpenAI, asked: str, answered: str) -> None:
    assert client.embeddings.create(model=asked, input="a", user="somebody").model == answered


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (NAME, "model")
    assert model.created > 0
    assert model.owned_by


def test_headers_say_what_computed_it(client: openai.OpenAI) -> None:
    reply = client.embeddings.with_raw_response.create(
        model="m", input=["a", "bc"], extra_headers={"x-baseten-request-id": "mine"}
    )
    assert reply.headers["x-request-id"] == "mine"
    assert reply.headers["x-compute-type"].startswith("cpu+")
    assert (reply.headers["x-compute-characters"], reply.headers["x-compute-tokens"]) == ("3", "6")


@pytest.mark.parametrize(
    ("options", "expected", "kind", "param"),
    [
        ({"input": ""}, openai.BadRequestError, "Empty", "input"),
        ({"input": []}, openai.BadRequestError, "Empty", "input"),
        ({"input": ["a", ""]}, openai.BadRequestError, "Empty", "input"),
        ({"input": 5}, openai.UnprocessableEntityError, "Validation", "input"),
        ({"input": ["a", 5]}, openai.UnprocessableEntityError, "Validation", "input"),
        ({"input": [30_522]}, openai.UnprocessableEntityError, "Validation", "input"),
        ({"input": ["a"] * 2049}, openai.UnprocessableEntityError, "Validation", "input"),
        ({"input": LONG, "extra_body": {"truncate": False}}, openai.UnprocessableEntityError, "Validation", "input"),
        ({"input": "a", "dimensions": -1}, openai.UnprocessableEntityError, "Validation", "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, openai.UnprocessableEntityError, "Validation", "encoding_format"),
        ({"input": "a", "user": {}}, openai.UnprocessableEntityError, "Validation", "user"),
        (
            {"input": "a", "extra_headers": {"Request-Timeout-Ms": "0"}},
            openai.InternalServerError,
            "DeadlineExceeded",
            None,
        ),
    ],
)
def test_each_error_raises_the_clients_own(
    client: openai.OpenAI,
    options: dict[str, Any],
    expected: type[openai.APIStatusError],
    kind: str,
    param: str | None,
) -> None:
    with pytest.raises(expected) as raised:
        client.embeddings.create(model="m", **options)
    assert (raised.value.type, raised.value.param) == (kind, param)
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]
    assert "`inputs`" not in raised.value.message, "names a field that this route does not have"


def test_a_route_that_is_not_there_raises_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client.completions.create(model="m", prompt="a")


def test_a_wrong_key_raises_authentication_error(strict: Server) -> None:
    with openai.OpenAI(base_url=f"{strict.url}/v1", api_key="another", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.embeddings.create(model="m", input="a")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert (raised.value.type, raised.value.code) == ("Unauthorized", "invalid_api_key")
    assert KEY not in str(raised.value.body)


def test_the_right_key_opens_and_the_limits_hold(strict: Server) -> None:
    with openai.OpenAI(base_url=f"{strict.url}/v1", api_key=KEY, max_retries=0) as client:
        assert len(client.embeddings.create(model="m", input=["a"] * 4).data) == 4
        with pytest.raises(openai.UnprocessableEntityError, match="maximum allowed batch size 4"):
            client.embeddings.create(model="m", input=["a"] * 5)
        with pytest.raises(openai.APIStatusError) as raised:
            client.embeddings.create(model="m", input="a" * 10_000)
    assert (raised.value.status_code, raised.value.type) == (413, "PayloadTooLarge")
