"""Ray Serve answers the routes of `bei serve`, for its own model and for others by the header."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from bei_core.errors import ConfigError
from bei_core.serve_ray import app
from tests.fakes import SAFETY_S
from tests.golden.cases import CASES, GOLDEN
from tests.ray.local_cluster import LocalCluster, free_ports

CASE = next(case for case in CASES if case.name == "bert-cls-normalize")
RERANKER = str(GOLDEN / "roberta-rerank-pooler")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    arguments = {
        "model_id": str(CASE.folder),
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "dtype": "float32",
        "max_replicas": 2,
    }
    (port,) = free_ports(1)
    serve.start(http_options={"port": port})
    serve.run(app(arguments))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:  # noqa: ANN401
    headers = {"content-type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=SAFETY_S) as reply:
        return json.loads(reply.read())


def test_vectors_are_those_of_the_model(url: str) -> None:
    found = post(f"{url}/v1/embeddings", {"input": list(CASE.texts[:4]), "model": "any"})
    vectors = np.array([item["embedding"] for item in found["data"]])
    assert np.allclose(vectors, CASE.vectors[:4], atol=1e-4)


def test_health_and_errors_are_those_of_the_server(url: str) -> None:
    with urllib.request.urlopen(f"{url}/health", timeout=SAFETY_S) as reply:
        assert reply.status == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{url}/embed", {"inputs": []})
    assert refused.value.code == 400
    assert json.loads(refused.value.read())["error_type"] == "Empty"


def test_a_header_asks_for_another_model(url: str) -> None:
    body = {"query": "what", "texts": ["one", "two"]}
    found = post(f"{url}/rerank", body, {"serve_multiplexed_model_id": RERANKER})
    assert {item["index"] for item in found} == {0, 1}
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{url}/rerank", body)
    assert refused.value.code == 424


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"max_replicas": "many"}, "an option of the deployment is wrong"), ({"modelid": "x"}, "modelid")],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        app(arguments)
