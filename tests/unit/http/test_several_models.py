"""Several models in one server: the choice of a request's model, and `/info`, health and metrics of all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import httpx
import httpx2  # what openai's client is made of
import msgspec
import openai
import pytest
from click.testing import CliRunner
from starlette.requests import Request
from starlette.types import Message

from bei_core.checkpoint import Checkpoint
from bei_core.cli import main as cli
from bei_core.config.settings import Settings
from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.errors import CheckpointError, ConfigError
from bei_core.http.app import App
from bei_core.http.naming import by_name
from bei_core.http.server.sockets import Sockets
from bei_core.metrics import Metrics
from bei_core.models.modules import Classifier
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Rows
from model.model import Model
from tests.fakes import SAFETY_S, WIDTH, FakeEngine
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
LABELS = {"a/ranker": 1, "a/first": 0, "b/second": 0, "d/first": 0}  # of each model; none: it embeds


class Narrow(FakeEngine):
    """An engine whose rows are as wide as there are labels."""

    def __init__(self, width: int) -> None:
        super().__init__(max_seq_len=48)
        self.info = EngineInfo("fake", "cpu", "f32", width, max_seq_len=48, batch_tokens=48)

    def forward(self, batch: Batch) -> Rows:
        return super().forward(batch)[:, : self.info.row_width]


class Stage:
    """Replaces the building of engines."""

    def __init__(self) -> None:
        self.engines: dict[str, FakeEngine] = {}

    def open(self, settings: Settings) -> Opened:
        name = settings.model_id or ""
        if name not in LABELS:
            raise CheckpointError(f"there is no {name}")
        spec, labels = _spec(), LABELS[name]
        engine = self.engines[name] = Narrow(labels or WIDTH)
        if labels:
            spec = msgspec.structs.replace(spec, modules=(Classifier(("LABEL_0",), "sigmoid"),))
        manifest = Manifest(engine="fake", precision="f32", source=name, revision="1" * 40, artifact="0" * 32)
        return Opened(engine, spec, FOLDER / "tokenizer.json", manifest)


def _spec() -> ModelSpec:
    return read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr("bei_core.serving.service.open_engine", stage.open)
    return stage


@pytest.fixture
def services(stage: Stage) -> Iterator[list[Service]]:
    found = Service.open_all(Settings.load({"models": ["a/ranker", "a/first", "two=b/second"]}, {}))
    for engine in stage.engines.values():
        engine.batches.clear()
    yield found
    for engine in stage.engines.values():
        engine.release()
    for service in found:
        service.close(SAFETY_S)


@pytest.fixture
async def http(services: list[Service]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(App(*services))
    async with httpx.AsyncClient(transport=transport, base_url="http://a", timeout=SAFETY_S) as client:
        yield client


def used(stage: Stage) -> list[str]:
    """The models that ran something since the last call."""
    names = [name for name, engine in stage.engines.items() if engine.batches]
    for engine in stage.engines.values():
        engine.batches.clear()
    return names


@pytest.mark.parametrize(
    ("named", "model"),
    [
        ("a/first", "a/first"),
        ("first", "a/first"),
        ("two", "b/second"),
        ("b/second", "b/second"),
        ("second", "b/second"),
        ("two-query", "b/second"),  # as NVIDIA's clients name an input type
        ("b/second-passage", "b/second"),
        ("", "a/first"),
        (None, "a/first"),
        ("not-required", "a/first"),
    ],
)
@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/", "input")])
async def test_a_request_goes_to_the_model_it_names(
    stage: Stage, http: httpx.AsyncClient, path: str, field: str, named: str | None, model: str
) -> None:
    reply = await http.post(path, json={field: "text", "model": named})
    assert reply.status_code == 200
    assert used(stage) == [model]


async def test_without_a_name_it_goes_to_the_first_that_can(stage: Stage, http: httpx.AsyncClient) -> None:
    for path, body, model in (
        ("/v1/embeddings", {"input": "text"}, "a/first"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "a/first"),
        ("/rerank", {"query": "q", "texts": ["a", "b"]}, "a/ranker"),
        ("/v2/rerank", {"query": "q", "documents": ["a"]}, "a/ranker"),
        ("/predict", {"inputs": "text"}, "a/ranker"),
    ):
        assert (await http.post(path, json=body)).status_code == 200, path
        assert used(stage) == [model], path
    assert (await http.post("/tokenize", json={"inputs": "text"})).status_code == 200


async def test_a_model_that_does_something_else_says_so(http: httpx.AsyncClient) -> None:
    reply = await http.post("/rerank", json={"query": "q", "texts": ["a"], "model": "two"})
    assert (reply.status_code, reply.json()["error_type"]) == (424, "Backend")  # TEI's kind
    assert "is a model of kind" in reply.json()["error"]


@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/", "input")])
async def test_an_unknown_name_is_refused_with_the_known_ones(http: httpx.AsyncClient, path: str, field: str) -> None:
    reply = await http.post(path, json={field: "text", "model": "other"})
    assert reply.status_code == 404
    assert "'other'" in reply.text
    assert "a/ranker, a/first, two" in reply.text


async def test_openais_client_raises_its_own_error_for_an_unknown_name(services: list[Service]) -> None:
    transport = httpx2.ASGITransport(App(*services))
    http = openai.DefaultAsyncHttpxClient(transport=transport)
    client = openai.AsyncOpenAI(base_url="http://a/v1", api_key="k", http_client=http, max_retries=0)
    with pytest.raises(openai.NotFoundError) as refused:
        await client.embeddings.create(model="other", input="text")
    assert (refused.value.type, refused.value.param) == ("NotFound", "model")
    assert (await client.embeddings.create(model="two", input="text")).model == "two"
    await client.close()


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "two"', b'{"model": 3, "input": "a"}', b"[" * 100_000])
async def test_a_broken_body_gets_the_error_that_it_gets_from_one_model(
    stage: Stage, http: httpx.AsyncClient, body: bytes
) -> None:
    alone = Service.open(Settings.load({"model_id": "a/first"}, {}))
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(alone)), base_url="http://a") as one:
            for path in ("/v1/embeddings", "/embed", "/classify"):
                expected = await one.post(path, content=body)
                reply = await http.post(path, content=body)
                assert (reply.status_code, reply.content) == (expected.status_code, expected.content)
    finally:
        alone.close(SAFETY_S)


async def test_one_model_takes_any_name(stage: Stage) -> None:
    (service,) = Service.open_all(Settings.load({"model_id": "a/first"}, {}))
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(service)), base_url="http://a") as http:
            for name in ("gpt-4", "", None, "a/first"):
                assert (await http.post("/v1/embeddings", json={"input": "a", "model": name})).status_code == 200
    finally:
        service.close(SAFETY_S)


async def test_all_are_listed_and_each_described(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["a/ranker", "a/first", "two"]
    assert (await http.get("/info")).json()["model_id"] == "a/ranker"
    assert (await http.get("/info", params={"model": "two"})).json()["model_id"] == "two"
    assert (await http.get("/info", params={"model": "other"})).status_code == 404


@pytest.mark.parametrize("name", ["two", "b/second", "second", "two-query", "second-passage"])
async def test_a_model_is_found_by_every_name_that_a_body_may_have(http: httpx.AsyncClient, name: str) -> None:
    replies = [await http.get(f"/v1/models/{name}"), await http.post("/api/show", json={"model": f"{name}:latest"})]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].json()["id"] == "two"


async def test_instances_of_vertex_go_to_the_model_that_the_body_names(stage: Stage, http: httpx.AsyncClient) -> None:
    instances = [{"input": "a", "model": "two"}, {"input": "b"}]
    reply = await http.post("/vertex", json={"instances": instances})
    assert (reply.status_code, "an instance names the model 'two'" in reply.text) == (422, True)
    assert used(stage) == []
    assert (await http.post("/vertex", json={"instances": instances, "model": "b/second"})).status_code == 200
    assert used(stage) == ["b/second"]


async def test_a_name_with_an_unknown_end_is_not_found(http: httpx.AsyncClient) -> None:
    replies = [await http.get("/v1/models/two-other"), await http.post("/api/show", json={"model": "two-other"})]
    assert [reply.status_code for reply in replies] == [404, 404]


async def test_health_needs_every_model(http: httpx.AsyncClient, services: list[Service]) -> None:
    assert (await http.get("/health")).status_code == 200
    services[2]._runner._give_up("a test broke it")
    for path in ("/health", "/ping", "/health/ready", "/health?model=a/first"):
        assert (await http.get(path)).status_code == 503, path
    assert (await http.get("/health/live")).status_code == 200


async def test_health_fails_from_the_start_of_a_drain(http: httpx.AsyncClient, services: list[Service]) -> None:
    app = App(*services)
    app.drain()
    assert app.draining
    assert (await http.get("/health")).status_code == 503
    assert (await http.post("/embed", json={"inputs": "text"})).status_code == 200


async def test_the_metrics_count_all(http: httpx.AsyncClient, services: list[Service]) -> None:
    assert len({id(service.metrics) for service in services}) == 1
    for name in ("a/first", "two"):
        await http.post("/embed", json={"inputs": "text", "model": name})
    assert 'te_request_success{method="single"} 2.0' in (await http.get("/metrics")).text


def test_queues_are_added_up() -> None:
    metrics = Metrics()
    assert b"te_queue_size 0.0" in metrics.render()
    metrics.watch_queue(lambda: 2)
    metrics.watch_queue(lambda: 3)
    assert b"te_queue_size 5.0" in metrics.render()


def test_if_one_model_does_not_open_all_are_closed(stage: Stage) -> None:
    with pytest.raises(CheckpointError, match="d/missing"):
        Service.open_all(Settings.load({"models": ["a/first", "b/second", "d/missing"]}, {}))
    assert [engine.is_closed for engine in stage.engines.values()] == [True, True]


def test_several_share_turns_and_one_has_none(services: list[Service], stage: Stage) -> None:
    turns = {id(service._runner._turns) for service in services}
    assert len(turns) == 1
    assert services[0]._runner._turns is not None
    (alone,) = Service.open_all(Settings.load({"models": ["n=a/first"]}, {}))
    assert (alone.name, alone._runner._turns) == ("n", None)
    alone.close(SAFETY_S)


def test_two_of_one_name_are_refused(services: list[Service]) -> None:
    with pytest.raises(ConfigError, match="two models have the name two"):
        App(*services, Service(services[2]._opened, services[2].settings))


def test_a_last_part_that_two_models_share_is_not_a_name(stage: Stage) -> None:
    found = Service.open_all(Settings.load({"models": ["a/first", "d/first"]}, {}))
    assert set(by_name(found)) == {"a/first", "d/first"}
    for service in found:
        service.close(SAFETY_S)


async def test_truss_serves_several(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.model.shared_metrics", Metrics)
    model = Model(config={"model_metadata": {"bei": {"models": ["a/ranker", "a/first", "two=b/second"]}}}, secrets={})
    model.load()
    for engine in stage.engines.values():
        engine.batches.clear()

    async def post(body: dict[str, str]) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps(body).encode()}

        reply = await model.predict(Request({"type": "http", "method": "POST", "headers": []}, receive))
        assert reply.status_code == 200, bytes(reply.body)

    app = model._loaded()
    try:
        for body, name in (
            ({"input": "text"}, "a/first"),
            ({"input": "text", "model": "two"}, "b/second"),
            ({"inputs": "text"}, "a/ranker"),  # the first model's kind says what such a body is for
            ({"inputs": "text", "model": "second"}, "b/second"),
        ):
            await post(body)
            assert used(stage) == [name]
        assert await model.is_healthy()
        app.services[1].drain()
        assert not await model.is_healthy()
    finally:
        for service in app.services:
            service.close(SAFETY_S)


# --- The command line


@pytest.mark.parametrize("flag", ["--model", "--models"])
def test_a_command_line_repeats_the_flag(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    opened: list[Settings] = []
    monkeypatch.setattr(Service, "open_all", opened.append)
    monkeypatch.setattr("bei_core.http.server.sockets.bind", lambda settings: Sockets())
    monkeypatch.setattr("bei_core.http.server.run.serve", lambda services, sockets, traces: None)
    result = CliRunner().invoke(cli.app, ["serve", flag, "a/b", flag, "n=c/d"], env={"BEI_MODELS": "", "MODEL_ID": ""})
    assert result.exit_code == 0, result.output
    assert opened[0].models == ("a/b", "n=c/d")


def test_a_command_for_one_model_refuses_several() -> None:
    with pytest.raises(ConfigError, match="2 models are given; give one"):
        CliRunner().invoke(cli.app, ["embed", "--model", "a", "--model", "b", "text"], catch_exceptions=False)
