"""Ray Serve answers the routes of `bei serve`, for its own model and for others by the header."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from bei_core.errors import ConfigError
from bei_core.errors import ConfigError
from bei_core.serve_ray import app
from tests.golden.cases import CASES, GOLDEN

CASE = next(case for case in CASES if case.name == "bert-cls-normalize")
RERANKER = str(GOLDEN / "roberta-rerank-pooler")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ray.init(num_cpus=2, log_to_driver=False)
    cache = str(tmp_path_factory.mktemp("cache"))
    serve.start(http_options={"port": 0})
    serve.run(app({"model_id": str(CASE.folder), "cache_dir": cache, "dtype": "float32", "max_replicas": 2}))
    port = serve.context._global_client.http_config.port if False else 8000
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:  # noqa: ANN401
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    )
    with urllib.request.urlopen(request) as reply:
        return json.loads(reply.read())


def test_vectors_are_those_of_the_model(url: str) -> None:
    found = post(f"{url}/v1/embeddings", {"input": list(CASE.texts[:4]), "model": "any"})
    vectors = np.array([item["embedding"] for item in found["data"]])
    assert np.allclose(vectors, CASE.vectors[:4], atol=1e-4)
