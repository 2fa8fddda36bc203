"""Replicas that share only an object store: one builds an engine and another starts from it, without the hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from bei_core.engines.manifest import TUNED
from tests.chaos.test_cache_processes import MODEL, ROOT, environment, finish, rows, start
from tests.hub import Hub

BUCKET = "engines"
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """A server with a bucket, as the environment of its clients."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environ = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    client = boto3.client(
        "s3",
        endpoint_url=environ["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket=BUCKET)
    yield environ
    server.stop()


def bei(environ: dict[str, str], *words: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bei_core.cli", *words], env=environ, cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.long
def test_an_engine_pushed_from_one_folder_starts_in_a_clean_one_bit_for_bit(tmp_path: Path, s3: dict[str, str]) -> None:
    builder = environment(tmp_path / "builder", **s3)
    folder = Path(bei(builder, "build", "--model-id", str(MODEL)))
    url = bei(builder, "engines", "push", folder.name[:8], f"s3://{BUCKET}/by-hand")
    assert url == f"s3://{BUCKET}/by-hand/{folder.name}"
    (expected,) = rows(finish(start({**builder, "BEI_MODEL_ID": str(folder)})))

    clean = environment(tmp_path / "clean", HF_ENDPOINT="http://127.0.0.1:1", **s3)
    pulled = Path(bei(clean, "engines", "pull", url))
    assert pulled == tmp_path / "clean" / "engines" / folder.name
    listed = [path for path in folder.iterdir() if path.name != TUNED]  # which each machine writes
    assert {path.name: path.read_bytes() for path in pulled.iterdir()} == {
        path.name: path.read_bytes() for path in listed
    }
    assert rows(finish(start({**clean, "BEI_MODEL_ID": str(pulled)}))) == [expected]

    by_url = environment(tmp_path / "by-url", BEI_MODEL_ID=url, HF_ENDPOINT="http://127.0.0.1:1", **s3)
    assert rows(finish(start(by_url))) == [expected]


def test_a_replica_pulls_the_engine_that_another_has_built(tmp_path: Path, s3: dict[str, str]) -> None:
    files = {path.relative_to(MODEL).as_posix(): path.read_bytes() for path in MODEL.rglob("*") if path.is_file()}
    shared = {"BEI_MODEL_ID": "owner/name", "BEI_ENGINE_STORE": f"s3://{BUCKET}/shared", **s3}
    with Hub() as hub:
        hub.add("owner/name", files)
        first = environment(tmp_path / "a", HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hub"), **shared)
        built = finish(start(first))
    shutil.rmtree(tmp_path / "hub")
    second = environment(tmp_path / "b", HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hub"), **shared)
    taken = finish(start(second))
    assert "engine built" in built
    assert "engine pushed" in built
    assert "engine built" not in taken
    assert "engine pulled" in taken
    assert rows(taken) == rows(built)
    assert {*os.listdir(tmp_path / "b" / "engines")} == {*os.listdir(tmp_path / "a" / "engines")}
