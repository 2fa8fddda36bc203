"""Ray Serve answers the routes of `bei serve`, for its own model and for others by the header."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from bei_core.config.settings import SETTINGS, Settings
from bei_core.errors import ConfigError
from bei_core.serve_ray import app
from bei_core.serve_ray.deployment import REFUSED
from bei_core.serve_ray.replica import settings_of
from tests.collector import Collector, Span
from tests.fakes import SAFETY_S
from tests.golden.cases import CASES, GOLDEN
from tests.ray.local_cluster import LocalCluster, free_ports, lines_with

CASE = next(case for case in CASES if case.name == "bert-cls-normalize")
RERANKER = str(GOLDEN / "roberta-rerank-pooler")
PAGE = "https://page.example"
MAX_BYTES = 100_000
KEY = {"authorization": "Bearer secret"}

# The settings that a replica honours. A new setting has to be put here or into REFUSED.
OF_A_MODEL = """
model_id models revision served_model_name dtype pooling dense_path engine devices tensor_parallel_size
torch_compile default_prompt default_prompt_name rerank_template auto_truncate trt_llm quantization_type
smooth_quant_alpha calib_dataset calib_size calib_max_seq_length quality_mean_cosine quality_top_label_agreement
quality_rank_correlation cache_dir cache_size_gb huggingface_hub_cache engine_store refresh verify hf_token
engine_store_secret checkpoint_secret"""
OF_REQUESTS = """
max_batch_tokens max_batch_requests max_client_batch_size max_concurrent_requests max_queue_tokens
max_queue_wait_s hang_timeout_s engine_process payload_limit max_body_bytes_in_flight max_reply_bytes drain_timeout_s
tokenization_workers api_key api_key_file api_keys_file cors_allow_origin ui webserver_default_route log_level
json_output access_log otlp_endpoint otlp_service_name"""
WITHOUT_EFFECT = [name for name, setting in SETTINGS.items() if setting.about.no_effect]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[str]:
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 2})
    environment = {"env_vars": {"OTEL_BSP_SCHEDULE_DELAY": "200"}}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
    arguments = {
        "model_id": str(CASE.folder),
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "dtype": "float32",
        "max_replicas": "2",
        "api_key": "secret",
        "cors_allow_origin": PAGE,
        "max_body_bytes_in_flight": str(MAX_BYTES),
        "json_output": "true",
        "log_level": "debug",
        "access_log": "true",
        "otlp_endpoint": collector.url,
        "otlp_service_name": "on-ray",
    }
    (port,) = free_ports(1)
    serve.start(http_options={"port": port})
    serve.run(app(arguments))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def sent(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:  # noqa: ANN401
    """The reply to a request with the key."""
    headers = {"content-type": "application/json", **KEY, **(headers or {})}
    return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=SAFETY_S)


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:  # noqa: ANN401
    with sent(url, body, headers) as reply:
        return json.loads(reply.read())


def refused(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and body of a reply that is an error."""
    with pytest.raises(urllib.error.HTTPError) as error:
        sent(url, body, headers)
    return error.value.code, json.loads(error.value.read())


def span_of(collector: Collector, request_id: str) -> Span:
    """The only span of a request."""
    for _ in range(round(SAFETY_S / 0.1)):
        found = [span for span in collector.spans if request_id in span.attributes.values()]
        if found:
            (span,) = found
            return span
        time.sleep(0.1)
    raise AssertionError("the span did not arrive")


def test_vectors_are_those_of_the_model(url: str) -> None:
    found = post(f"{url}/v1/embeddings", {"input": list(CASE.texts[:4]), "model": "any"})
    vectors = np.array([item["embedding"] for item in found["data"]])
    assert np.allclose(vectors, CASE.vectors[:4], atol=1e-4)


def test_health_and_errors_are_those_of_the_server(url: str) -> None:
    with urllib.request.urlopen(f"{url}/health", timeout=SAFETY_S) as reply:
        assert reply.status == 200
    status, body = refused(f"{url}/embed", {"inputs": []})
    assert (status, body["error_type"]) == (400, "Empty")


def test_a_header_asks_for_another_model(url: str) -> None:
    body = {"query": "what", "texts": ["one", "two"]}
    found = post(f"{url}/rerank", body, {"serve_multiplexed_model_id": RERANKER})
    assert {item["index"] for item in found} == {0, 1}
    assert refused(f"{url}/rerank", body)[0] == 424
    own = {"serve_multiplexed_model_id": CASE.folder.name}
    assert refused(f"{url}/rerank", body, own)[0] == 424, "the replica's own model is not loaded again"


def test_a_model_that_cannot_be_loaded_is_an_error_of_the_request(url: str) -> None:
    status, body = refused(f"{url}/embed", {"inputs": "one"}, {"serve_multiplexed_model_id": "/no/such/folder"})
    assert (status, body["error_type"]) == (404, "NotFound")
    assert "the model '/no/such/folder' cannot be loaded: " in body["error"]


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_the_error_of_such_a_model_has_the_headers_the_log_line_and_the_trace_of_any_reply(
    url: str, collector: Collector, path: str
) -> None:
    name = f"a-refused-request-{path[1:].replace('/', '-')}"
    headers = {"serve_multiplexed_model_id": "/no/such/folder", "origin": PAGE, "x-baseten-request-id": name}
    with pytest.raises(urllib.error.HTTPError) as error:
        sent(f"{url}{path}", {"inputs": "one"}, headers)
    assert error.value.code == 404
    assert error.value.headers["access-control-allow-origin"] == PAGE
    assert error.value.headers["x-request-id"] == name
    lines = [json.loads(line) for line in lines_with(f'"{name}"') if line.startswith("{")]
    assert [(line["logger"], line["path"], line["status"]) for line in lines] == [("bei_core.access", path, 404)]
    assert span_of(collector, name).name == f"POST {path}"


@pytest.mark.parametrize("model", ["", RERANKER, "/no/such/folder"])
def test_no_model_is_loaded_for_a_request_without_the_key(url: str, model: str) -> None:
    headers = {"authorization": "Bearer guess", "serve_multiplexed_model_id": model}
    status, body = refused(f"{url}/embed", {"inputs": "one"}, headers)
    assert (status, body["error_type"]) == (401, "Unauthorized")


def test_pages_of_an_origin_may_call(url: str) -> None:
    with sent(f"{url}/embed", {"inputs": "one"}, {"origin": PAGE}) as reply:
        assert reply.headers["access-control-allow-origin"] == PAGE
    with sent(f"{url}/embed", {"inputs": "one"}, {"origin": "https://other.example"}) as reply:
        assert reply.headers["access-control-allow-origin"] is None
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/embed", headers=asked, method="OPTIONS"), timeout=SAFETY_S
    ) as reply:
        assert reply.headers["access-control-allow-origin"] == PAGE


def test_bodies_take_their_bytes_from_the_budget_and_give_them_back(url: str) -> None:
    for _ in range(3):
        assert len(post(f"{url}/embed", {"inputs": "x" * (MAX_BYTES // 2)})) == 1
    status, body = refused(f"{url}/embed", {"inputs": "x" * MAX_BYTES})
    assert (status, body["error_type"]) == (429, "Overloaded")


def test_requests_are_logged_as_json(url: str) -> None:
    post(f"{url}/embed", {"inputs": "one"}, {"x-baseten-request-id": "a-logged-request"})
    found = [json.loads(line) for line in lines_with("a-logged-request") if line.startswith("{")]
    assert [(line["logger"], line["path"], line["status"]) for line in found] == [("bei_core.access", "/embed", 200)]


def test_traces_go_to_the_collector(url: str, collector: Collector) -> None:
    post(f"{url}/embed", {"inputs": "one"}, {"x-baseten-request-id": "a-traced-request"})
    span = span_of(collector, "a-traced-request")
    assert (span.name, span.resource["service.name"]) == ("POST /embed", "on-ray")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_replicas": "many"}, "an option of the deployment is wrong"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is more than max_replicas 2"),
        ({"num_cpus": -1}, r"an option of the deployment is wrong: .*num_cpus"),
        ({"max_replica": 2}, "unknown argument max_replica; did you mean max_replicas"),
        ({"max_batch_tokens": "many"}, "max_batch_tokens is 'many': Expected `int`"),
        *((({name: "1"}), f"the argument {name} is refused, because Ray's proxy has") for name in REFUSED),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        app(arguments)


def test_a_variable_of_the_environment_that_ray_would_ignore_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "8000")
    with pytest.raises(ConfigError, match=r"the environment variable PORT is refused, .*: give http_options\.port"):
        app({"model_id": "owner/name"})


def test_every_setting_is_honoured_or_refused() -> None:
    assert sorted([*OF_A_MODEL.split(), *OF_REQUESTS.split(), *REFUSED, *WITHOUT_EFFECT]) == sorted(SETTINGS)


def test_ray_drains_a_replica_for_as_long_as_the_server_would() -> None:
    deployment = app({"model_id": "owner/name", "drain_timeout_s": "7.5"})._bound_deployment
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 7.5


def test_another_model_has_the_settings_but_not_those_of_one_model() -> None:
    given = {"model_id": "owner/name", "revision": "v1", "default_prompt": "query: ", "pooling": "cls", "api_key": "k"}
    other = settings_of(Settings.load(given, {}), "other/name")
    assert (other.model_id, other.revision, other.default_prompt, other.pooling) == ("other/name", None, None, None)
    assert other.api_key == "k"
    several = settings_of(Settings.load({"models": ("a/b", "c/d")}, {}), "other/name")
    assert [each.model_id for each in several.each()] == ["other/name"]
