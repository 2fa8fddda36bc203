"""Traces: the spans that a collector receives; a collector never delays or fails a request."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest
from click.testing import CliRunner

from bei_core.checkpoint import Checkpoint
from bei_core.cli import main as cli
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.errors import ConfigError
from bei_core.http import traces as traces_module
from bei_core.http.app import make_app
from bei_core.http.traces import Traces, open_traces, traces_url
from bei_core.http.version import bei_version
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from model.model import Model
from tests.collector import Collector, Span
from tests.fakes import SAFETY_S, FakeEngine
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
BAD = 4  # an id that the engine fails on
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER = 2  # SPAN_KIND_SERVER


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@dataclass
class Served:
    """An application that traces."""

    client: httpx.AsyncClient
    traces: Traces

    async def embed(self, ids: object = (5, 6, 7), path: str = "/embed", **headers: str) -> httpx.Response:
        return await self.client.post(path, json={"inputs": ids}, headers=headers)


MakeServed = Callable[..., Awaitable[Served]]


@pytest.fixture
async def make_served() -> AsyncIterator[MakeServed]:
    async with AsyncExitStack() as stack:

        async def make(endpoint: str, *names: str) -> Served:
            services = [_service(name, endpoint) for name in names or ("m",)]
            for service in services:
                service.start()
                stack.callback(service.close, SAFETY_S)
            traces = open_traces(services[0].settings)
            assert traces is not None
            stack.callback(traces.close)
            transport = httpx.ASGITransport(app=make_app(*services, traces=traces)[1])
            client = httpx.AsyncClient(transport=transport, base_url="http://a", timeout=SAFETY_S)
            return Served(await stack.enter_async_context(client), traces)

        yield make


def _service(name: str, endpoint: str) -> Service:
    spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    engine = FakeEngine(max_seq_len=48, raises_on=[BAD])
    flags = {"model_id": f"owner/{name}", "served_model_name": name, "otlp_endpoint": endpoint, "api_key": None}
    return Service(Opened(engine, spec, FOLDER / "tokenizer.json", manifest), Settings.load(flags, {}))


def sent(served: Served, collector: Collector) -> list[Span]:
    """The spans of the collector after all were sent."""
    served.traces.close()
    return collector.spans


async def test_a_request_is_a_span_of_the_callers_trace(make_served: MakeServed, collector: Collector) -> None:
    served = await make_served(collector.url)
    body = {"input": [[5, 6, 7], [8, 9]], "model": "m"}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-baseten-request-id": "r1"}
    reply = await served.client.post("/v1/embeddings", json=body, headers=headers)
    (span,) = sent(served, collector)
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    assert (span.name, span.kind, span.failed) == ("POST /v1/embeddings", SERVER, False)
    shown = {name: reply.headers[f"x-{name}-time"] for name in ("tokenization", "queue", "inference")}  # ms
    assert {name: f"{span.attributes.pop(f'bei.{name}_ms'):.3f}" for name in shown} == shown
    assert float(shown["inference"]) > 0
    assert span.seconds * 1e3 >= float(reply.headers["x-total-time"])
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": reply.json()["usage"]["prompt_tokens"],
        "bei.num_inputs": 2,
        "bei.request_id": "r1",
    }
    assert (span.resource["service.name"], span.resource["service.version"]) == ("bei", bei_version())
    assert collector.paths == ["/v1/traces"]


@pytest.mark.parametrize(
    "traceparent", [None, "", "00-x", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", "\xff"]
)
async def test_without_a_callers_trace_it_is_a_trace_of_its_own(
    make_served: MakeServed, collector: Collector, traceparent: str | None
) -> None:
    served = await make_served(collector.url)
    headers = {} if traceparent is None else {b"traceparent": traceparent.encode("latin-1")}
    reply = await served.client.post("/embed", json={"inputs": [5]}, headers=headers)
    assert reply.status_code == 200
    (span,) = sent(served, collector)
    assert span.parent_id == ""
    assert int(span.trace_id, 16)


async def test_what_the_caller_does_not_sample_is_not_sent(make_served: MakeServed, collector: Collector) -> None:
    served = await make_served(collector.url)
    assert (await served.embed(traceparent=f"00-{TRACE}-{PARENT}-00")).status_code == 200
    assert sent(served, collector) == []


@pytest.mark.parametrize(
    ("body", "status", "kind", "failed"),
    [
        ({"inputs": {"secret": 1}}, 422, "Validation", False),
        ({"inputs": ""}, 400, "Empty", False),
        ({"inputs": [BAD]}, 424, "Backend", True),
    ],
)
async def test_an_error_is_recorded_without_the_content_of_the_request(
    make_served: MakeServed, collector: Collector, body: object, status: int, kind: str, failed: bool
) -> None:
    served = await make_served(collector.url)
    assert (await served.client.post("/embed", json=body)).status_code == status
    (span,) = sent(served, collector)
    assert span.name == "POST /embed"
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes["error.type"] == kind
    assert span.failed is failed
    assert "secret" not in str(span)


async def test_a_deadline_that_passed_is_an_error(make_served: MakeServed, collector: Collector) -> None:
    served = await make_served(collector.url)
    headers = {"request-timeout-ms": "0"}
    assert (await served.client.post("/embed", json={"inputs": [5]}, headers=headers)).status_code == 504
    (span,) = sent(served, collector)
    assert span.failed
    assert (span.attributes["http.response.status_code"], span.attributes["bei.num_inputs"]) == (504, 1)


async def test_a_bug_is_an_error(
    make_served: MakeServed, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = await make_served(collector.url)
    caplog.set_level(logging.CRITICAL, "bei_core.http.app")
    monkeypatch.setattr(Service, "run", None)
    assert (await served.embed()).status_code == 424
    (span,) = sent(served, collector)
    assert span.failed


async def test_what_no_route_answers_has_neither_path_nor_model(make_served: MakeServed, collector: Collector) -> None:
    served = await make_served(collector.url)
    assert (await served.embed(path="/nothing/secret")).status_code == 404
    assert (await served.client.post("/", json={"other": 1})).status_code == 422
    assert (await served.client.delete("/embed")).status_code == 405
    assert (await served.client.request("SECRET", "/embed")).status_code == 405
    assert (await served.client.get("/openapi.json")).status_code == 200  # like probes, without a span
    spans = sent(served, collector)
    assert [span.name for span in spans] == ["POST", "POST", "DELETE", "_OTHER"]
    assert not any({"http.route", "gen_ai.response.model"} & span.attributes.keys() for span in spans)
    assert "secret" not in str(spans).lower()


async def test_a_body_by_its_fields_has_the_route_that_answered(make_served: MakeServed, collector: Collector) -> None:
    served = await make_served(collector.url)
    assert (await served.embed(path="/invocations")).status_code == 200
    (span,) = sent(served, collector)
    assert (span.name, span.attributes["http.route"]) == ("POST /embed", "/embed")


async def test_probes_and_scrapes_are_not_traced(make_served: MakeServed, collector: Collector) -> None:
    served = await make_served(collector.url)
    for path in ("/health", "/health/live", "/health/ready", "/ping", "/metrics", "/info"):
        assert (await served.client.get(path)).status_code == 200
    (span,) = sent(served, collector)
    assert span.name == "GET /info"
    assert "gen_ai.response.model" not in span.attributes  # which did nothing for it


async def test_of_several_models_the_one_that_answered_is_named(make_served: MakeServed, collector: Collector) -> None:
    served = await make_served(collector.url, "first", "second")
    for model in ("second", "first", "third"):
        await served.client.post("/embed", json={"inputs": [5], "model": model})
    found = [span.attributes.get("gen_ai.response.model") for span in sent(served, collector)]
    assert found == ["second", "first", None]


async def test_the_sdks_variables_count(
    make_served: MakeServed, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.version=7")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=k")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    served = await make_served(collector.url)
    await served.embed()
    await served.embed(traceparent=f"00-{TRACE}-{PARENT}-01")
    (span,) = sent(served, collector)
    assert span.trace_id == TRACE
    wanted = {"service.name": "search", "deployment.environment": "test", "service.version": "7"}
    assert span.resource.items() >= wanted.items()
    assert collector.headers[0]["x-key"] == "k"


async def test_a_collector_that_is_not_there_is_not_noticed(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        served = await make_served(f"http://127.0.0.1:{unheard.getsockname()[1]}")
        for _ in range(20):
            assert (await served.embed()).status_code == 200
        served.traces.close()
        assert (await served.embed()).status_code == 200


async def test_a_collector_that_hangs_holds_up_nothing(
    make_served: MakeServed, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(int(SAFETY_S)))
    monkeypatch.setattr(traces_module, "_CLOSE_S", 0.01)
    collector.hold()
    served = await make_served(collector.url)
    await served.embed()
    collector.wait()
    for _ in range(20):
        assert (await served.embed()).status_code == 200
    served.traces.close()
    assert "they are lost" in caplog.text
    collector.release()


async def test_a_collector_that_refuses_is_logged_once_in_a_while(
    make_served: MakeServed, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setattr(traces_module._SELDOM, "_last", float("-inf"))
    collector.status = 401
    served = await make_served(collector.url)
    for _ in range(3):
        await served.embed()
        collector.wait()
    served.traces.close()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")]
    assert len(said) == 1
    assert "401" in said[0]


async def test_callers_do_not_fill_the_log(
    make_served: MakeServed, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for seldom in (traces_module._SELDOM, traces_module._SELDOM_ABOUT_CLIENTS):
        monkeypatch.setattr(seldom, "_last", float("-inf"))
    collector.status = 401
    served = await make_served(collector.url)
    for _ in range(3):
        await served.embed(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="no pair", baggage="mine,mine")
        await served.embed(traceparent="0" * 513)  # longer than any
    assert len(sent(served, collector)) == 6
    names = [record.name for record in caplog.records if record.name.startswith("opentelemetry")]
    assert names == ["opentelemetry.trace.span", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/v1/traces", "https://c/v1/traces"),
        ("https://c/v1/traces/", "https://c/v1/traces"),
        ("https://c/otlp?key=k", "https://c/otlp/v1/traces?key=k"),
    ],
)
def test_spans_are_posted_to_the_url_of_the_endpoint(endpoint: str, url: str, caplog: pytest.LogCaptureFixture) -> None:
    assert traces_url(endpoint) == url
    assert not caplog.records


def test_the_port_of_grpc_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert traces_url("http://user:secret@c:4317") == "http://user:secret@c:4317/v1/traces"
    assert "gRPC" in caplog.text
    assert "secret" not in caplog.text


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert open_traces(Settings.load({}, {})) is None


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        pytest.fail("a model was opened before the packages were looked for")

    monkeypatch.setattr(Service, "open_all", opened)


PIP = r"pip install 'bei-core\[otlp\]'"


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize(
    "package", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_a_missing_package_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    command = ["serve", "--model-id", "a/b", "--otlp-endpoint", "http://c:4318"]
    with pytest.raises(ConfigError, match=PIP):
        CliRunner().invoke(cli.app, command, catch_exceptions=False)
    block = {"model_id": "a/b", "otlp_endpoint": "http://c:4318"}
    with pytest.raises(ConfigError, match=PIP):
        Model(config={"model_metadata": {"bei": block}}).load()


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize(
    "endpoint",
    [
        "http://",
        "http://:4318",
        "http:///v1/traces",
        "http://c:abc",
        "http://c:99999",
        "http://[::1",
        "http://u:secret/@c",
    ],
)
def test_an_endpoint_without_a_host_is_an_error_at_the_start(endpoint: str) -> None:
    command = ["serve", "--model-id", "a/b", "--otlp-endpoint", endpoint]
    with pytest.raises(ConfigError, match=r"^otlp_endpoint must be .* as in http://collector:4318$") as caught:
        CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None  # whose text may have it


def test_a_variable_that_the_sdk_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "0")
    with pytest.raises(ConfigError, match="schedule_delay"):
        open_traces(Settings.load({"otlp_endpoint": "http://c:4318"}, {}))
