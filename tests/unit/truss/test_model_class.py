"""model/model.py by itself; tests/e2e/test_truss.py has Truss's server run it."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.errors import CheckpointError, ConfigError
from bei_core.metrics import Metrics, shared_metrics
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from model.model import Model
from tests.fakes import WIDTH, FakeEngine
from tests.golden.cases import CASES


class Stage:
    """Fake services, which `Service.open` returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Exception] = []
        self.opened: list[tuple[Service, Settings]] = []

    def open(self, settings: Settings, metrics: Metrics) -> Service:
        if self.faults:
            raise self.faults.pop(0)
        checkpoint = resolve(str(self.folder))
        manifest = Manifest(engine="fake", precision="f32", source="fake", revision="0", artifact="0" * 32)
        opened = Opened(FakeEngine(), read_spec(checkpoint), self.folder / "tokenizer.json", manifest)
        service = Service(opened, settings, metrics)
        service.start()
        self.opened.append((service, settings))
        return service


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(CASES[0].folder)
    monkeypatch.setattr(Service, "open", stage.open)
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "disabled", False)
    yield stage
    for service, _ in stage.opened:
        service.close()


@pytest.fixture
def model(stage: Stage) -> Model:
    model = Model(
        config={"model_metadata": {"bei": {"model_id": "m"}}}, secrets={}, data_dir=Path("data"), environment=None
    )
    model.load()
    return model


def request_of(body: bytes) -> Request:
    """A request like Truss's, whose body has been read."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    request._body = body
    return request


@pytest.mark.parametrize("method", [Model.predict, Model.embeddings])
def test_truss_can_see_that_a_method_takes_a_request(method: object) -> None:
    signature = inspect.signature(method)  # type: ignore[arg-type]
    (parameter,) = list(signature.parameters.values())[1:]
    assert parameter.annotation is Request, "a string: model.py must not import annotations from __future__"
    assert inspect.iscoroutinefunction(method)


def test_loading_twice_opens_once(model: Model, stage: Stage) -> None:
    model.load()
    assert len(stage.opened) == 1


def test_truss_may_load_again_after_a_fault(stage: Stage) -> None:
    model = Model(config={"model_metadata": {"bei": {"model_id": "m"}}}, secrets={})
    stage.faults = [CheckpointError("out of reach")]
    with pytest.raises(CheckpointError):
        model.load()
    model.load()
    assert len(stage.opened) == 1


@pytest.mark.parametrize("json_output", [False, True])
def test_the_log_settings_count_and_trusss_handlers_stay(
    stage: Stage, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, json_output: bool
) -> None:
    others = logging.getLogger().handlers[:]
    block = {"model_id": "m", "log_level": "debug", "json_output": json_output}
    Model(config={"model_metadata": {"bei": block}}, secrets={}).load()
    capsys.readouterr()
    logging.getLogger("bei_core.example").debug("a line")
    logging.getLogger("another.example").debug("a line of another's")
    said = capsys.readouterr().err
    assert logging.getLogger().handlers == others
    if json_output:
        assert json.loads(said)["message"] == "a line"
    else:
        assert [record.message for record in caplog.records if record.name.endswith(".example")] == ["a line"]


def test_a_wrong_config_is_refused_with_its_key(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="max_batch_tokns"):
        Model(config={"model_metadata": {"bei": {"max_batch_tokns": 1}}}, secrets={}).load()


def test_settings_are_trusss_config_under_the_environment(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEI_MAX_CONCURRENT_REQUESTS", "7")
    config = {"secrets": {"hf_access_token": None}, "model_metadata": {"bei": {"model_id": "m"}}, "trt_llm": None}
    Model(config=config, secrets={"hf_access_token": "s"}).load()
    _, settings = stage.opened[0]
    assert (settings.model_id, settings.max_concurrent_requests, settings.hf_token) == ("m", 7, "s")


def test_the_access_log_is_off(model: Model) -> None:
    assert logging.getLogger("uvicorn.access").disabled


def test_every_model_of_a_process_counts_in_the_one_registry(model: Model, stage: Stage) -> None:
    Model(config={"model_metadata": {"bei": {"model_id": "m"}}}, secrets={}).load()
    assert {service.metrics for service, _ in stage.opened} == {shared_metrics()}


async def test_predict_goes_by_the_body(model: Model) -> None:
    openai = json.loads(bytes((await model.predict(request_of(b'{"input": ["a", "b"]}'))).body))
    tei = json.loads(bytes((await model.predict(request_of(b'{"inputs": ["a", "b"]}'))).body))
    assert [item["embedding"] for item in openai["data"]] == tei
    assert len(tei[0]) == WIDTH


async def test_embeddings_is_the_openai_route(model: Model) -> None:
    body = json.loads(bytes((await model.embeddings(request_of(b'{"input": "a"}'))).body))
    assert body["object"] == "list"
    assert (await model.embeddings(request_of(b'{"inputs": "a"}'))).status_code == 422


async def test_a_body_that_no_route_takes(model: Model) -> None:
    reply = await model.predict(request_of(b'{"text": "a"}'))
    assert reply.status_code == 422
    assert "`inputs` as /embed does" in json.loads(bytes(reply.body))["error"]["message"]
    assert reply.headers["x-request-id"]


async def test_it_is_healthy_while_the_engine_answers(model: Model, stage: Stage) -> None:
    service, _ = stage.opened[0]
    assert await model.is_healthy()
    service._runner._give_up("a test broke it")
    assert not await model.is_healthy()


async def test_it_is_not_healthy_while_it_drains(model: Model, stage: Stage) -> None:
    service, _ = stage.opened[0]
    service.drain()
    assert not await model.is_healthy()
