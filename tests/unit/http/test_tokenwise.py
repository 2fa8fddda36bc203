"""The routes that answer with something of every token or term, over HTTP's application and a fake engine."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.http.app import App
from bei_core.models.modules import Classifier, Module, Pooling, Splade
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Rows, scores
from bei_core.text.tokenizer import TextTokenizer
from tests.fakes import FakeEngine
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
LABELS = ("O", "B-PER", "I-PER")
NER = Classifier(LABELS, "softmax", per_token=True)
POOLING = Pooling(modes=(PoolingMode.CLS,))
MAX_SEQ_LEN = 48
TWO_STRATEGIES = {"aggregation_strategy": "max", "parameters": {"aggregation_strategy": "first"}}
TWO_IGNORED = {"ignore_labels": list[str](), "parameters": {"ignore_labels": ["O"]}}


def token_rows(ids: Any) -> Rows:  # noqa: ANN401 - an array or a list
    """f32[n, 3]: of each token logits that its id alone decides."""
    array = np.asarray(ids, np.float32)
    return np.stack([array % 5, array % 7, array % 3], axis=1)


class Tokenwise(FakeEngine):
    """Gives each token `token_rows`, and each text a row of which every other element is 0."""

    def __init__(self, *, token_width: int) -> None:
        super().__init__(max_seq_len=MAX_SEQ_LEN)
        self.info = EngineInfo("fake", "cpu", "f32", 8, MAX_SEQ_LEN, batch_tokens=256, token_width=token_width)

    def forward(self, batch: Batch) -> Rows:
        """f32[B, 8]."""
        rows = super().forward(batch) + 1
        rows[:, ::2] = 0
        return rows

    def forward_tokens(self, batch: Batch) -> tuple[Rows, Rows]:
        """f32[B, 8], f32[T, 3]."""
        return self.forward(batch), token_rows(batch.input_ids)


def spec_of(*modules: Module) -> ModelSpec:
    spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
    return msgspec.structs.replace(spec, modules=modules, max_seq_len=MAX_SEQ_LEN, prompts={"query": "find: "})


@asynccontextmanager
async def serving(*modules: Module, token_width: int = 3, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a model with these modules."""
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    found = Opened(Tokenwise(token_width=token_width), spec_of(*modules), FOLDER / "tokenizer.json", manifest)
    service = Service(found, Settings.load({"model_id": "owner/name", **settings}, {}))
    service.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(service)), base_url="http://bei") as client:
            yield client
    finally:
        service.close()


def pieces(text: str) -> list[tuple[int, str, bool, int, int]]:
    """The tokens of a text, by the tokenizer itself."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode(text)
    rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    return [(id_, token, bool(special), *span) for id_, token, special, span in rows]


def ids(text: str) -> list[int]:
    return [piece[0] for piece in pieces(text)]


TEXTS = ["red", "a blue house", "green fields"]


async def test_embed_all_has_a_vector_for_every_token() -> None:
    async with serving(POOLING) as client:
        reply = await client.post("/embed_all", json={"inputs": TEXTS})
    assert reply.status_code == 200
    for text, found in zip(TEXTS, reply.json(), strict=True):
        np.testing.assert_array_equal(found, token_rows(ids(text)))
    assert int(reply.headers["x-compute-tokens"]) == sum(len(ids(text)) for text in TEXTS)


async def test_embed_all_of_one_text_or_of_ids_is_a_list_too() -> None:
    async with serving() as client:  # late interaction
        text = (await client.post("/embed_all", json={"inputs": "red"})).json()
        numbers = (await client.post("/embed_all", json={"inputs": [[5, 6, 7]]})).json()
    np.testing.assert_array_equal(text, [token_rows(ids("red"))])
    np.testing.assert_array_equal(numbers, [token_rows([5, 6, 7])])


@pytest.mark.parametrize("asked", ["return_dense", "return_sparse", "return_colbert_vecs"])
async def test_several_outputs_are_refused_by_name_where_the_model_is_not_bge_m3(asked: str) -> None:
    async with serving(POOLING) as client:
        for answer in (True, False):
            reply = await client.post("/embed_all", json={"inputs": "red", asked: answer})
            assert reply.status_code == 424
            assert f"`{asked}`" in reply.json()["error"]
        weights = await client.post("/pooling", json={"input": "red", "task": "token_classify"})
    assert weights.status_code == 424
    assert "does not do `task: token_classify`" in weights.json()["error"]["message"]


async def test_embed_all_is_cut_where_the_text_is() -> None:
    long = " ".join(TEXTS * 20)
    async with serving(POOLING) as client:
        (found,) = (await client.post("/embed_all", json={"inputs": long, "truncation_direction": "left"})).json()
        refused = await client.post("/embed_all", json={"inputs": long, "truncate": False})
    expected = ids(long)
    np.testing.assert_array_equal(found, token_rows([expected[0], *expected[-MAX_SEQ_LEN + 1 :]]))
    assert refused.status_code == 422


async def test_embed_sparse_has_each_nonzero_value_with_its_index() -> None:
    async with serving(Splade(), token_width=0) as client:
        found = (await client.post("/embed_sparse", json={"inputs": TEXTS})).json()
    assert [[item["index"] for item in one] for one in found] == [[1, 3, 5, 7]] * 3
    assert all(item.keys() == {"index", "value"} and item["value"] >= 1 for one in found for item in one)


async def test_predict_tokens_has_the_best_label_of_every_token() -> None:
    async with serving(NER) as client:
        found = (await client.post("/predict_tokens", json={"inputs": [[text] for text in TEXTS]})).json()
    for text, tokens in zip(TEXTS, found, strict=True):
        expected = scores(token_rows(ids(text)), "softmax")
        assert [token["token_id"] for token in tokens] == ids(text)
        assert [(token["token"], token["start"], token["end"]) for token in tokens] == [
            (piece[1], *piece[3:]) for piece in pieces(text)
        ]
        for token, row in zip(tokens, expected, strict=True):
            assert token["results"] == {LABELS[int(row.argmax())]: pytest.approx(row.max(), rel=1e-5)}


async def test_raw_scores_are_the_logits_of_every_label() -> None:
    async with serving(NER) as client:
        (found,) = (await client.post("/predict_tokens", json={"inputs": "red", "raw_scores": True})).json()
    assert [list(token["results"]) for token in found] == [list(LABELS)] * len(ids("red"))
    np.testing.assert_array_equal([list(token["results"].values()) for token in found], token_rows(ids("red")))


@pytest.mark.parametrize("inputs", ["red", ["red"], [["red"]]])
async def test_every_spelling_of_one_text_is_the_same(inputs: object) -> None:
    async with serving(NER) as client:
        found = (await client.post("/predict_tokens", json={"inputs": inputs})).json()
    assert [[token["token_id"] for token in one] for one in found] == [ids("red")]


async def test_aggregated_entities_have_basetens_fields_and_transformers() -> None:
    text = "Green FIELDS and more"
    async with serving(NER) as client:
        body = {"inputs": [text, "red"], "aggregation_strategy": "max", "ignore_labels": []}
        found = (await client.post("/predict_tokens", json=body)).json()
        usual = (await client.post("/predict_tokens", json={**body, "ignore_labels": None})).json()
        as_pipeline = (await client.post("/predict_tokens", json={**body, "parameters": {}})).json()
    assert len(found) == 2
    assert {entity["entity_group"] for entity in found[0]} >= {"O"}
    for entity in found[0]:
        assert entity["token"] == text[entity["start"] : entity["end"]]
        assert entity["token_id"] == 0
        assert entity["results"] == {entity["entity_group"]: entity["score"]}
    names = ("entity_group", "score", "word", "start", "end")
    assert as_pipeline == [[{name: entity[name] for name in names} for entity in one] for one in found]
    assert usual == [[entity for entity in one if entity["entity_group"] != "O"] for one in found]


@pytest.mark.parametrize("path", ["/", "/invocations", "/invocations/"])
async def test_hugging_faces_clients_get_the_pipelines_shape(path: str) -> None:
    text = "green fields and more red"
    async with serving(NER, webserver_default_route="/predict_tokens") as client:
        simple = (await client.post(path, json={"inputs": text})).json()
        named = (
            await client.post(path, json={"inputs": text, "parameters": {"aggregation_strategy": "simple"}})
        ).json()
        both = (await client.post(path, json={"inputs": [text], "parameters": {}})).json()
        body = {"inputs": text, "parameters": {"aggregation_strategy": "none", "ignore_labels": ["B-PER"]}}
        tokens = (await client.post(path, json=body)).json()
    assert simple == named == both[0]
    assert all(entity.keys() == {"entity_group", "score", "word", "start", "end"} for entity in simple)
    inside = [index for index, piece in enumerate(pieces(text)) if not piece[2]]
    best = token_rows(ids(text)).argmax(axis=1)
    assert [token["index"] for token in tokens] == [index for index in inside if LABELS[best[index]] != "B-PER"]
    assert all(token.keys() == {"entity", "score", "index", "word", "start", "end"} for token in tokens)


@pytest.mark.parametrize("side", ["Left", "Right"])
async def test_offsets_are_those_of_the_whole_text_where_it_is_cut(side: str) -> None:
    long = "é🙂 " + " ".join(TEXTS * 20)
    async with serving(NER) as client:
        body = {"inputs": long, "truncation_direction": side, "prompt_name": "query"}
        (found,) = (await client.post("/predict_tokens", json=body)).json()
    assert len(found) == MAX_SEQ_LEN
    whole = [piece for piece in pieces(long) if not piece[2]]
    kept = [(token["token_id"], token["token"], token["start"], token["end"]) for token in found if token["end"]]
    expected = [(piece[0], piece[1], *piece[3:]) for piece in whole]
    assert kept == (expected[-len(kept) :] if side == "Left" else expected[: len(kept)])
    assert len(kept) < MAX_SEQ_LEN - 2 or side == "Left"  # the prompt's tokens are at 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_spans_are_those_of_the_tokens_that_are_encoded(side: str) -> None:
    from bei_core.tasks import EncodeOptions, TruncationSide

    tokenizer = TextTokenizer(FOLDER / "tokenizer.json", max_seq_len=6, vocab_size=1000)
    for text in ("a", "a blue house and green fields", "x" * 5000, "  red  "):
        options = EncodeOptions(side=TruncationSide(side), prompt="find: ")
        (tokens,) = tokenizer.encode_now([text], options)
        (with_spans,) = tokenizer.encode_now([text], replace(options, spans=True))
        assert with_spans.ids.tolist() == tokens.ids.tolist()
        assert [span.id for span in with_spans.spans] == tokens.ids.tolist()


@pytest.mark.parametrize(
    ("modules", "token_width", "path", "body"),
    [
        ((POOLING,), 0, "/embed_all", {"inputs": "a"}),
        ((NER,), 3, "/embed_all", {"inputs": "a"}),
        ((POOLING,), 3, "/embed_sparse", {"inputs": "a"}),
        ((POOLING,), 3, "/predict_tokens", {"inputs": "a"}),
        ((Splade(),), 0, "/embed", {"inputs": "a"}),
        ((NER,), 3, "/predict", {"inputs": "a"}),
    ],
)
async def test_what_the_model_does_not_do_is_a_424(
    modules: tuple[Module, ...], token_width: int, path: str, body: object
) -> None:
    async with serving(*modules, token_width=token_width) as client:
        reply = await client.post(path, json=body)
    assert (reply.status_code, reply.json()["error_type"]) == (424, "Backend")  # TEI's kind
    assert re.search("is a model of kind|gives no vectors", reply.json()["error"])


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/predict_tokens", {"inputs": []}, 400, "empty"),
        ("/predict_tokens", {"inputs": [""]}, 400, "empty"),
        ("/predict_tokens", {"inputs": [[]]}, 422, "list of 0"),
        ("/predict_tokens", {"inputs": ["a", ["b", "c"]]}, 422, "list of 2"),
        ("/predict_tokens", {"inputs": "a", "aggregation_strategy": "best"}, 422, "aggregation_strategy"),
        ("/predict_tokens", {"inputs": "a", "parameters": {"ignore_labels": "O"}}, 422, "ignore_labels"),
        ("/predict_tokens", {"inputs": "a", **TWO_STRATEGIES}, 422, "`parameters.aggregation_strategy` contradict"),
        ("/predict_tokens", {"inputs": "a", **TWO_IGNORED}, 422, "`parameters.ignore_labels` contradict"),
        ("/vertex", {"instances": []}, 400, "instances"),
        ("/vertex", {"instances": {}}, 422, "instances"),
        ("/vertex", {"instances": [{"inputs": "a"}, {"text": "b"}]}, 422, "text"),
        ("/vertex", {"instances": [{"inputs": "a"}, {"inputs": ""}]}, 400, "empty"),
        ("/vertex", {"instances": [{"inputs": "a"}] * 5}, 422, "batch size 5"),
    ],
)
async def test_what_cannot_be_answered_is_refused(path: str, body: object, status: int, named: str) -> None:
    async with serving(NER, max_client_batch_size=4) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == status, reply.text
    assert named in reply.text


@pytest.mark.parametrize(
    ("modules", "path"),
    [((POOLING,), "/embed"), ((Splade(),), "/embed_sparse"), ((NER,), "/predict_tokens"), ((), "/embed_all")],
)
async def test_vertex_answers_each_instance_as_its_route_does(modules: tuple[Module, ...], path: str) -> None:
    bodies = [{"inputs": text} for text in TEXTS]
    async with serving(*modules) as client:
        reply = await client.post("/vertex", json={"instances": bodies, "parameters": {}})
        alone = [(await client.post(path, json=body)).json() for body in bodies]
        counts = (await client.get("/metrics")).text
    assert reply.json() == {"predictions": alone}
    assert int(reply.headers["x-compute-tokens"]) == sum(len(ids(text)) for text in TEXTS)
    assert int(reply.headers["x-compute-characters"]) == sum(map(len, TEXTS))
    assert float(reply.headers["x-inference-time"]) > 0
    assert "te_request_success" in counts


@pytest.mark.parametrize(("options", "num_runs", "at_a_time"), [({}, 1, 1), ({"chunk": True}, 100, 32)])
async def test_vertex_runs_few_requests_at_a_time(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], num_runs: int, at_a_time: int
) -> None:
    """1,024 requests that began in one turn of the event loop, and then ended in one, held it up for 150 ms."""
    numbers, running, run = list[int](), set[int](), Service.run

    async def counted(self: Service, task: Any, **given: Any) -> Any:  # noqa: ANN401 - any task and its result
        running.add(id(task))
        numbers.append(len(running))
        try:
            return await run(self, task, **given)
        finally:
            running.remove(id(task))

    bodies = [{"inputs": [f"word {number}", "two"], **options} for number in range(100)]
    async with serving(POOLING) as client:
        alone = [(await client.post("/embed", json=body)).json() for body in bodies]
        monkeypatch.setattr(Service, "run", counted)
        reply = await client.post("/vertex", json={"instances": bodies})
    assert reply.json() == {"predictions": alone}
    assert (len(numbers), max(numbers)) == (num_runs, at_a_time)


async def test_vertex_tells_the_usage_of_each_instance() -> None:
    bodies = [{"input": text} for text in TEXTS]
    async with serving(POOLING) as client:
        found = (await client.post("/vertex", json={"instances": bodies})).json()["predictions"]
        wrong = await client.post("/vertex", json={"instances": [{"inputs": "a"}, {"inputs": "b", "dimensions": 9}]})
    assert [each["usage"]["total_tokens"] for each in found] == [len(ids(text)) for text in TEXTS]
    assert wrong.status_code == 422
    assert "between 1 and 8" in wrong.text


async def test_vertex_finds_the_route_of_each_body() -> None:
    similar = {"inputs": {"source_sentence": "red", "sentences": ["blue"]}}
    async with serving(POOLING) as client:
        body = {"instances": [similar, {"input": "red"}, {"inputs": "red"}]}
        found = (await client.post("/vertex", json=body)).json()["predictions"]
    assert len(found[0]) == 1
    assert found[1]["object"] == "list"
    np.testing.assert_allclose(found[2], [found[1]["data"][0]["embedding"]])


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ["positive", "negative", "neutral"]),
        ({"top_k": 2}, ["positive", "negative"]),
        ({"function_to_apply": "none", "top_k": 1}, ["positive"]),
    ],
)
async def test_predict_with_parameters_is_a_list_of_lists(parameters: dict[str, object], expected: list[str]) -> None:
    classifier = Classifier(("negative", "neutral", "positive"), "softmax")

    class Three(Tokenwise):
        def forward(self, batch: Batch) -> Rows:
            return np.tile(np.array([[0.5, -3, 2]], np.float32), (len(batch), 1))

    engine = Three(token_width=0)
    engine.info = EngineInfo("fake", "cpu", "f32", 3, MAX_SEQ_LEN, batch_tokens=256)
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    opened = Opened(engine, spec_of(classifier), FOLDER / "tokenizer.json", manifest)
    service = Service(opened, Settings.load({"model_id": "owner/name"}, {}))
    service.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(service)), base_url="http://bei") as client:
            for path in ("/", "/predict"):
                (found,) = (await client.post(path, json={"inputs": "red", "parameters": parameters})).json()
                assert [item["label"] for item in found] == expected
                logit = parameters.get("function_to_apply") == "none"
                assert found[0]["score"] == pytest.approx(2.0 if logit else 0.8123, abs=1e-3)
    finally:
        service.close()


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ((POOLING,), {"embedding": {"pooling": "cls"}}),
        ((Splade(),), {"embedding": {"pooling": "splade"}}),
        ((), {"embedding": {"pooling": "none"}}),
        (
            (NER,),
            {
                "classifier": {
                    "id2label": {"0": "O", "1": "B-PER", "2": "I-PER"},
                    "label2id": {"O": 0, "B-PER": 1, "I-PER": 2},
                }
            },
        ),
    ],
)
async def test_info_describes_the_model_in_teis_terms(modules: tuple[Module, ...], expected: object) -> None:
    async with serving(*modules) as client:
        info = (await client.get("/info")).json()
    assert info["model_type"] == expected
    assert info["roles"] == [info["kind"]]
