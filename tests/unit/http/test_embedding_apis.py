"""Embeddings in other APIs: each option has its effect, compared with `/embed`, or is refused by name."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.http.app import App
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Rows, l2_normalize
from tests.fakes import WIDTH, FakeEngine
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
PROMPTS = {"query": "search: ", "passage": "text: ", "clustering": "group: "}
TEXTS = ["a cat", "the dog ran home", "rain"]
LONG = "a cat and a dog " * 40
MODEL = "owner/name"


async def client_of(prompts: dict[str, str], engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    spec = read_spec(Checkpoint(folder=FOLDER, source=MODEL, revision="1" * 40))
    manifest = Manifest(engine="fake", precision="f32", source=MODEL, revision="1" * 40, artifact="0" * 32)
    opened = Opened(engine, msgspec.structs.replace(spec, prompts=prompts), FOLDER / "tokenizer.json", manifest)
    service = Service(opened, Settings.load({"model_id": MODEL}, {}))
    service.start()
    engine.batches.clear()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(service)), base_url="http://bei") as client:
            yield client
    finally:
        service.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_seq_len=48)


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """Of a model with prompts."""
    async for each in client_of(PROMPTS, engine):
        yield each


@pytest.fixture
async def bare(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """Of a model without prompts."""
    async for each in client_of({}, engine):
        yield each


async def embed(client: httpx.AsyncClient, texts: Sequence[str] = TEXTS, **options: Any) -> Rows:  # noqa: ANN401
    """f32[N, D] by `/embed`, to compare with."""
    reply = await client.post("/embed", json={"inputs": list(texts), **options})
    assert reply.status_code == 200, reply.text
    return np.array(reply.json(), np.float32)


async def ask(client: httpx.AsyncClient, path: str, **body: object) -> dict[str, Any]:
    reply = await client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def vectors(client: httpx.AsyncClient, texts: Sequence[str] | None = None, **options: Any) -> list[Any]:  # noqa: ANN401
    """The embeddings by `/v1/embeddings`."""
    body = await ask(client, "/v1/embeddings", input=list(texts or TEXTS), **options)
    return [item["embedding"] for item in body["data"]]


def same(found: Any, expected: Rows) -> bool:  # noqa: ANN401 - JSON
    """Whether the numbers of a reply are those of f32 rows."""
    return np.array_equal(np.array(found, np.float32), expected)


def packed(rows: Rows) -> Rows:
    """u8[N, D / 8], bit by bit."""
    bits = [[sum((value > 0) << (7 - place) for place, value in enumerate(row))] for row in rows]
    return np.array(bits)


# --- what each name of a type means


@pytest.mark.parametrize(
    "named",
    [{"output_dtype": "{}"}, {"embedding_type": "{}"}, {"encoding_format": "{}"}],
    ids=["voyage", "nim", "mxbai"],
)
async def test_types_of_fewer_bits(client: httpx.AsyncClient, named: dict[str, str]) -> None:
    (field,) = named
    rows = await embed(client)
    scaled = np.rint(rows * 127 / np.abs(rows).max(axis=1, keepdims=True))
    for kind, expected in {
        "float": rows,
        "int8": scaled,
        "uint8": scaled + 128,
        "ubinary": packed(rows),
        "binary": packed(rows) - 128,
    }.items():
        found = np.array(await vectors(client, None, **{field: kind}), np.float32)
        assert np.array_equal(found, expected.astype(np.float32)), kind
    assert np.abs(scaled).max() == 127


async def test_int8_keeps_directions(client: httpx.AsyncClient) -> None:
    rows = await embed(client)
    found = l2_normalize(np.array(await vectors(client, output_dtype="int8"), np.float32))
    assert ((found * rows).sum(axis=1) > 0.999).all()


@pytest.mark.parametrize(("kind", "dtype"), [("float", "<f4"), ("int8", "i1"), ("binary", "i1"), ("ubinary", "u1")])
async def test_voyages_base64_holds_numbers_of_the_type(client: httpx.AsyncClient, kind: str, dtype: str) -> None:
    numbers = await vectors(client, output_dtype=kind)
    encoded = await vectors(client, output_dtype=kind, encoding_format="base64")
    assert [np.frombuffer(base64.b64decode(text), dtype).tolist() for text in encoded] == [
        np.array(row, dtype).tolist() for row in numbers
    ]


async def test_jinas_base64(client: httpx.AsyncClient) -> None:
    encoded = await vectors(client, embedding_type="base64")
    assert np.array_equal([np.frombuffer(base64.b64decode(text), "<f4") for text in encoded], await embed(client))


@pytest.mark.parametrize("order", ["little", "big", "native"])
async def test_vllms_types_of_the_numbers_in_base64(client: httpx.AsyncClient, order: str) -> None:
    mark, rows = ">" if order == "big" else "<", await embed(client)
    options = {"encoding_format": "base64", "endianness": order}
    halves = await vectors(client, embed_dtype="float16", **options)
    assert np.array_equal([np.frombuffer(base64.b64decode(text), f"{mark}f2") for text in halves], rows.astype("f2"))
    brains = await vectors(client, embed_dtype="bfloat16", **options)
    words = np.array([np.frombuffer(base64.b64decode(text), f"{mark}u2") for text in brains]).astype(np.uint32) << 16
    assert np.allclose(words.view(np.float32), rows, rtol=2**-8, atol=0)
    plain = await vectors(client, embed_dtype="float32", **options)
    assert np.array_equal([np.frombuffer(base64.b64decode(text), f"{mark}f4") for text in plain], rows)


async def test_mixedbreads_list_of_formats(client: httpx.AsyncClient) -> None:
    reply = await ask(
        client, "/v1/embeddings", input=TEXTS, encoding_format=["float", "int8", "base64"], normalized=True
    )
    assert reply["normalized"] is True
    assert (reply["dimensions"], reply["encoding_format"]) == (WIDTH, ["float", "int8", "base64"])
    for item, row, small in zip(
        reply["data"], await embed(client), await vectors(client, output_dtype="int8"), strict=True
    ):
        assert item["embedding"].keys() == {"float", "int8", "base64"}
        assert item["embedding"]["float"] == pytest.approx(row.tolist())
        assert item["embedding"]["int8"] == small


async def test_msgpack_has_types_of_fewer_bits_too(client: httpx.AsyncClient) -> None:
    body = {"input": TEXTS, "output_dtype": "binary"}
    reply = await client.post("/v1/embeddings", json=body, headers={"accept": "application/msgpack"})
    found = msgspec.msgpack.decode(reply.content)
    assert [item["embedding"] for item in found["data"]] == await vectors(client, output_dtype="binary")


# --- what changes the numbers


@pytest.mark.parametrize("name", ["normalize", "normalized", "use_activation"])
async def test_normalisation_by_each_name(client: httpx.AsyncClient, name: str) -> None:
    assert same(await vectors(client, None, **{name: False}), await embed(client, normalize=False))
    assert same(await vectors(client, None, **{name: True}), await embed(client))


async def test_dimensions_by_voyages_name(client: httpx.AsyncClient) -> None:
    assert same(await vectors(client, output_dimension=3), await embed(client, dimensions=3))


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({"input_type": "query"}, "query"),
        ({"input_type": "document"}, "passage"),
        ({"input_type": "passage"}, "passage"),
        ({"task": "retrieval.query"}, "query"),
        ({"task": "retrieval.passage"}, "passage"),
        ({"task": "separation"}, "clustering"),
    ],
    ids=str,
)
async def test_input_types_choose_the_models_prompts(
    client: httpx.AsyncClient, options: dict[str, str], prompt: str
) -> None:
    assert same(await vectors(client, **options), await embed(client, prompt_name=prompt))


@pytest.mark.parametrize("task", ["retrieval.query", "text-matching", "classification", "clustering"])
async def test_usual_tasks_mean_nothing_to_a_model_without_prompts(bare: httpx.AsyncClient, task: str) -> None:
    assert same(await vectors(bare, task=task), await embed(bare))


async def test_mixedbreads_prompt_is_put_before_each_text(client: httpx.AsyncClient) -> None:
    assert same(await vectors(client, prompt="say: "), await embed(client, [f"say: {text}" for text in TEXTS]))


@pytest.mark.parametrize(("side", "kept"), [("right", slice(0, 4)), ("left", slice(-4, None))])
async def test_truncation_to_so_many_tokens_of_vllm(
    client: httpx.AsyncClient, engine: FakeEngine, side: str, kept: slice
) -> None:
    await vectors(client, [LONG[:60]])
    (whole,) = engine.seen
    engine.batches.clear()
    await vectors(client, [LONG[:60]], truncate_prompt_tokens=6, truncation_side=side)
    assert engine.seen == [[whole[0], *whole[1:-1][kept], whole[-1]]]


async def test_truncation_of_token_ids(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await ask(client, "/v1/embeddings", input=[[5, 6, 7, 8]], truncate_prompt_tokens=2)
    assert engine.seen == [[5, 6]]


@pytest.mark.parametrize(
    "options", [{"truncate_prompt_tokens": -1}, {"truncation": True}, {"truncate": "END"}], ids=str
)
async def test_what_asks_for_truncation_to_the_models_length(
    client: httpx.AsyncClient, engine: FakeEngine, options: dict[str, object]
) -> None:
    await vectors(client, [LONG], **options)
    assert [len(ids) for ids in engine.seen] == [48]


@pytest.mark.parametrize("options", [{"truncation": False}, {"truncate": "NONE"}, {"truncate": False}], ids=str)
async def test_truncation_that_is_turned_off_refuses_a_long_text(
    client: httpx.AsyncClient, options: dict[str, object]
) -> None:
    reply = await client.post("/v1/embeddings", json={"input": LONG, **options})
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "input")


# --- what is refused by name


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"late_chunking": True}, "late_chunking"),  # the model's vector is that of the first token
        ({"return_multivector": True}, "return_multivector"),
        ({"padding": "max_length"}, "padding"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"modality": "image"}, "modality"),
        ({"modality": ["text", "image"]}, "modality"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"embed_dtype": "fp8_e4m3"}, "embed_dtype"),
        ({"endianness": "middle"}, "endianness"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"embedding_type": "int4"}, "embedding_type"),
        ({"output_dtype": "base64"}, "output_dtype"),
        ({"output_dimension": WIDTH + 1}, "output_dimension"),
        ({"embedding_type": "int8", "output_dtype": "binary"}, "output_dtype"),
        ({"output_dimension": 2, "dimensions": 3}, "output_dimension"),
        ({"normalize": True, "normalized": False}, "normalized"),
        ({"truncate": True, "truncation": False}, "truncation"),
        ({"input_type": "query", "task": "retrieval.passage"}, "task"),
        ({"prompt": "say: ", "input_type": "query"}, "prompt"),
        ({"task": "classification"}, "task"),  # the model has prompts, and none for this
        ({"task": "unheard of"}, "task"),
        ({"input_type": "unheard of"}, "input_type"),
    ],
    ids=str,
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.AsyncClient, options: dict[str, object], param: str
) -> None:
    reply = await client.post("/v1/embeddings", json={"input": "a", **options})
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["param"] == param
    assert param in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "`messages` is not supported: apply the chat template"),
        ({"model": "messages"}, "missing required field `input`"),
        ({"model": '"messages": '}, "missing required field `input`"),
    ],
    ids=str,
)
async def test_only_a_body_with_the_field_messages_is_told_about_chats(
    client: httpx.AsyncClient, body: dict[str, object], message: str
) -> None:
    reply = await client.post("/v1/embeddings", json=body)
    assert reply.status_code == 422, reply.text
    assert message in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "options",
    [
        {"late_chunking": False, "add_special_tokens": True, "modality": "text", "user": "u", "priority": 3},
        {"modality": ["text"], "truncation": None, "embedding_type": None, "cache_salt": "s", "request_id": "r"},
    ],
    ids=str,
)
async def test_what_changes_nothing_is_accepted(client: httpx.AsyncClient, options: dict[str, object]) -> None:
    assert same(await vectors(client, None, **options), await embed(client))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"embedding_type": "int8", "output_dtype": "binary"}, "output_dtype"),
        ({"encoding_format": "int8", "encoding_type": "ubinary"}, "encoding_type"),
        ({"encoding_format": ["float", "int8"], "embedding_type": "int8"}, "encoding_format"),
        ({"encoding_format": ["float", "int8"], "output_dtype": "float"}, "encoding_format"),
        ({"encoding_format": []}, "encoding_format"),
    ],
    ids=str,
)
async def test_formats_that_contradict_each_other_are_refused_before_the_model_runs(
    client: httpx.AsyncClient, engine: FakeEngine, options: dict[str, object], param: str
) -> None:
    reply = await client.post("/v1/embeddings", json={"input": "a", **options})
    assert (reply.status_code, reply.json().get("error", {}).get("param")) == (422, param), reply.text
    assert engine.batches == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a", "input_type": "query"}),
        ("/v1/embeddings", {"input": "a", "task": "retrieval.query"}),
        ("/v1/embeddings", {"input": "a", "model": "any-query"}),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query"}),
        ("/vectors", {"text": "a", "config": {"task_type": "query"}}),
    ],
    ids=str,
)
async def test_an_input_type_and_the_name_of_another_prompt_are_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    reply = await client.post(path, json=body | {"prompt_name": "passage"})
    assert reply.status_code == 422, reply.text
    assert "`prompt_name` and the input type name two prompts, 'passage' and 'query'" in reply.text
    assert (await client.post(path, json=body | {"prompt_name": "query"})).status_code == 200
