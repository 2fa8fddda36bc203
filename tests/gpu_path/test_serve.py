"""`bei serve --engine torch` on the CPU, asked by the client of OpenAI."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import OpenAI

from tests.conftest import MINILM
from tests.golden.cases import load_minilm

ROOT = Path(__file__).resolve().parents[2]
START_S = 300.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server of all-MiniLM-L6-v2 in f32."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--engine", "torch", "--dtype", "float32", "--model-id", str(MINILM), "--port", str(port))
    command = [sys.executable, "-W", "ignore", "-m", "bei_core.cli", "serve", *options]
    folder = tmp_path_factory.mktemp("cache")
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "packages"), "BEI_CACHE_DIR": str(folder)}
    with (folder / "log").open("w") as log, subprocess.Popen(command, env=environ, stdout=log, stderr=log) as server:
        try:
            wait(f"http://127.0.0.1:{port}/health", server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the server did not start: {log.read_text()}")


def test_the_openai_client_gets_the_vectors_of_sentence_transformers(url: str) -> None:
    expected = load_minilm()
    chosen = [at for at, text in enumerate(expected.texts[:60]) if text.strip()]
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=[expected.texts[at] for at in chosen])
    vectors = np.array([row.embedding for row in answer.data])
    np.testing.assert_allclose(vectors, expected.vectors[chosen], atol=2e-4)
    assert answer.usage.prompt_tokens == sum(len(expected.ids[at]) for at in chosen)


def test_info_and_headers_name_the_engine(url: str) -> None:
    reply = httpx.post(f"{url}/v1/embeddings", json={"model": "m", "input": "hello"})
    assert reply.headers["x-compute-type"] == "cpu+f32"
