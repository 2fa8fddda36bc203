"""The real `truss push --publish --promote`, against an imitation of Baseten, and clients of the deployed model.

Marked `push`: run by `make test-push` and by CI, not by `make test`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import requests
from baseten_performance_client import PerformanceClient, RequestProcessingPreference
from openai import OpenAI

from bei_core.truss.init import make
from tests.e2e.baseten import DEPLOYMENT, KEY, Baseten
from tests.e2e.deployed import (
    build,
    config_without,
    copy_of_the_repository,
    deployed,
    sizes,
    truss_cli,
    truss_version,
)
from tests.e2e.environments import ROOT
from tests.e2e.truss_server import Server, Truss
from tests.fakes import SAFETY_S
from tests.golden.cases import load_minilm
from tests.golden.tolerance import BF16, compare

pytestmark = pytest.mark.push

REFERENCE = load_minilm()
TEXTS = list(REFERENCE.texts[:40])
PUSH = ["push", "--publish", "--promote"]
FORMS = {"model.py": ROOT, "docker_server": ROOT / "examples" / "docker_server"}


@pytest.fixture(scope="module")
def venvs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("venvs")


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def baseten(form: str) -> Iterator[Baseten]:
    with Baseten() as baseten:
        yield baseten


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def truss(baseten: Baseten, form: str, venvs: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Truss:
    """The image of what was pushed from this repository."""
    before = (FORMS[form] / "config.yaml").read_bytes()
    print(truss_cli(baseten, FORMS[form], PUSH, home=home))
    assert (FORMS[form] / "config.yaml").read_bytes() == before
    return build(baseten, tmp_path_factory.mktemp("image"), venvs)


@pytest.fixture(scope="module")
def container(baseten: Baseten, truss: Truss, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with deployed(baseten, truss, tmp_path_factory.mktemp("run") / "container") as server:
        yield server


@pytest.fixture
def url(baseten: Baseten, container: Server) -> str:
    """The URL that replaces https://model-xxxxxx.api.baseten.co in the clients of Baseten's documentation."""
    return baseten.url


def test_push_sends_what_serves_and_nothing_else(truss: Truss, baseten: Baseten, form: str) -> None:
    found = sizes(truss)
    folders = {"data", "model", "packages"} if form == "model.py" else {"packages"}
    assert {name.split("/")[0] for name in found} <= {"config.yaml", ".truss_ignore"} | folders
    assert not [name for name in found if "test" in name or "golden" in name or "benchmark" in name]
    assert len(baseten.uploads[-1].archive) < 2_600_000
    assert {name for name in found if name.endswith(".py") and name.startswith("packages")} == packages()
    print(f"{len(baseten.uploads[-1].archive):,} bytes")


def test_push_is_promoted_and_asks_baseten_for_nothing_unknown(truss: Truss, baseten: Baseten) -> None:
    assert baseten.uploads[-1].environment == "production"
    assert baseten.operations[-1] == "create_model_from_truss"
    assert "truss_validation" in baseten.operations


def test_push_and_the_openai_client(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/environments/production/sync/v1", api_key=KEY, timeout=SAFETY_S) as client:
        reply = client.embeddings.create(input=TEXTS, model="not-required")
    compare(np.array([item.embedding for item in reply.data], np.float32), REFERENCE.vectors[:40], BF16)


def test_push_and_a_wrong_key(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/environments/production/sync/v1", api_key="no", max_retries=0)
    with client, pytest.raises(openai.PermissionDeniedError):
        client.embeddings.create(input="a", model="embedder")


def test_push_and_basetens_predict(url: str) -> None:
    for address in ("environments/production", f"deployment/{DEPLOYMENT}"):
        reply = requests.post(
            f"{url}/{address}/predict",
            headers={"Authorization": f"Api-Key {KEY}"},
            json={"input": TEXTS, "model": "embedder"},
            timeout=SAFETY_S,
        )
        assert reply.status_code == 200, reply.text
        found = np.array([item["embedding"] for item in reply.json()["data"]], np.float32)
        compare(found, REFERENCE.vectors[:40], BF16)


def test_push_and_truss_predict(url: str, baseten: Baseten, form: str, home: Path) -> None:
    data = json.dumps({"inputs": TEXTS[:3]})
    printed = truss_cli(baseten, FORMS[form], ["predict", "--published", "-d", data], home=home)
    vectors = json.loads(printed[printed.index("[\n") :])
    compare(np.array(vectors, np.float32), REFERENCE.vectors[:3], BF16)


def test_push_and_the_performance_client(url: str) -> None:
    client = PerformanceClient(base_url=f"{url}/environments/production/sync", api_key=KEY)
    reply = client.embed(input=TEXTS, model="embedder", preference=RequestProcessingPreference(batch_size=8))
    compare(reply.numpy(), REFERENCE.vectors[:40], BF16)
    (posted,) = client.batch_post(url_path="/embed", payloads=[{"inputs": TEXTS[:2]}]).data
    compare(np.array(posted, np.float32), REFERENCE.vectors[:2], BF16)


def test_push_and_the_performance_clients_scores(url: str) -> None:
    client = PerformanceClient(base_url=f"{url}/environments/production/sync", api_key=KEY)
    ranked = client.rerank(query="what grows", texts=TEXTS, truncate=True)
    assert sorted(item.index for item in ranked.data) == list(range(len(TEXTS)))
    (posted,) = client.batch_post(url_path="/rerank", payloads=[{"query": "what grows", "texts": TEXTS}]).data
    scores = {item["index"]: item["score"] for item in posted}
    assert [item.score for item in ranked.data] == pytest.approx([scores[item.index] for item in ranked.data], abs=0.02)
    labelled = client.classify(inputs=TEXTS, model="topics", truncate=True)
    body = {"inputs": [[text] for text in TEXTS], "model": "topics"}
    (expected,) = client.batch_post(url_path="/predict", payloads=[body]).data
    assert [labels[0].label for labels in labelled.data] == [labels[0]["label"] for labels in expected]


def test_push_and_the_references_embeddings(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's client code, less the host and the key."""
    monkeypatch.setenv("BASETEN_API_KEY", KEY)

    client = OpenAI(
        api_key=os.environ["BASETEN_API_KEY"],
        # add the deployment URL
        base_url=f"{url}/environments/production/sync/v1",
    )

    embedding = client.embeddings.create(
        input=["Baseten Embeddings are fast.", "Embed this sentence!"], model="not-required"
    )

    client.close()
    assert [len(item.embedding) for item in embedding.data] == [384, 384]


def test_push_and_the_references_scores(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's client code, less the host and the key."""
    monkeypatch.setenv("BASETEN_API_KEY", KEY)

    headers = {"Authorization": f"Api-Key {os.environ['BASETEN_API_KEY']}"}

    # model specific prompt for mixedbread's reranker v2.
    prompt = (
        "<|endoftext|><|im_start|>user\n"
        "query: {query} \ndocument: {doc} \nRelevance:<|im_end|>\n<|im_start|>assistant\n"
    ).format(query="What is Baseten?", doc="Baseten is a fast inference provider.")

    reply = requests.post(
        headers=headers,
        url=f"{url}/environments/production/sync/predict",
        json={
            "inputs": prompt,
            "raw_scores": True,
        },
        timeout=SAFETY_S,
    )
    assert reply.status_code == 200, reply.text
    (found,) = reply.json()
    assert np.isfinite(found["score"])


def test_push_with_the_requested_version_of_truss() -> None:
    wanted = os.environ.get("TRUSS_VERSION") or (ROOT / "requirements" / "truss.txt").read_text().strip()
    assert truss_version() == wanted.removeprefix("truss==")


def pushed(folder: Path, home: Path) -> set[str]:
    """The files that a push of a folder uploads."""
    with Baseten() as baseten:
        truss_cli(baseten, folder, PUSH, home=home)
        unpacked = baseten.uploads[-1].unpack(home / folder.name)
    return {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}


def packages() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "packages").rglob("*.py")}


@pytest.mark.parametrize("example", sorted(path.parent.name for path in (ROOT / "examples").glob("*/config.yaml")))
def test_push_of_an_example_sends_all_of_it(example: str, tmp_path: Path) -> None:
    found = pushed(ROOT / "examples" / example, tmp_path)
    assert {name for name in found if name.startswith("packages/") and name.endswith(".py")} == packages()
    assert ("model/model.py" in found) is (example != "docker_server")


def test_push_of_a_truss_outside_the_checkout_sends_all_files(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name, content in make(
        ROOT / "tests" / "data" / "baseten" / "BEI-Linq-Embed-Mistral.yaml", folder
    ).files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    found = pushed(folder, tmp_path / "home")
    assert found == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found >= packages()


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy of this repository's Truss, from which a test removes something before the push."""
    return copy_of_the_repository(tmp_path / "changed")


def why_it_does_not_serve(folder: Path, venvs: Path, home: Path) -> str:
    """Push and start a Truss; returns the log of its server, which must not become ready."""
    with Baseten() as baseten:
        truss_cli(baseten, folder, PUSH, home=home)
        truss = build(baseten, folder.parent / "image", venvs)
        with pytest.raises(AssertionError) as raised, deployed(baseten, truss, folder.parent / "run" / "container"):
            pass
    return str(raised.value)


def test_push_without_a_requirement_does_not_serve(changed: Path, venvs: Path, home: Path) -> None:
    config_without(changed, "tokenizers")
    assert "No module named 'tokenizers'" in why_it_does_not_serve(changed, venvs, home)


def test_push_without_a_file_of_the_package_does_not_serve(changed: Path, venvs: Path, home: Path) -> None:
    (changed / "packages" / "bei_core" / "http" / "field_router.py").unlink()
    assert "No module named 'bei_core.http.field_router'" in why_it_does_not_serve(changed, venvs, home)


def test_push_of_a_folder_that_truss_ignores_does_not_serve(changed: Path, venvs: Path, home: Path) -> None:
    """A name on truss's own list is dropped when the image is built, whatever .truss_ignore says."""
    package = changed / "packages" / "bei_core"
    (package / "http").rename(package / "lib")
    for path in [changed / "model" / "model.py", *package.rglob("*.py")]:
        path.write_text(
            path.read_text().replace("bei_core.http", "bei_core.lib").replace("core import http", "core import lib")
        )
    assert "No module named 'bei_core.lib'" in why_it_does_not_serve(changed, venvs, home)
