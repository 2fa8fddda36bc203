"""Generated requests, by our own OpenAPI document and by what TEI's clients rely on: no 5xx, no undocumented reply.

The log of the server has no error either.

One server has a model of every kind, so that every route has one that answers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MINILM
from tests.e2e.server import Server, cache_of, no_bugs
from tests.golden.cases import GOLDEN
from tests.golden.checkpoints import DATA

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")

# The published routes of text-embeddings-inference 1.9, written by hand: what its clients send and what they can read.
TEI = DATA / "tei_openapi.json"

MODELS = {
    "embedder": MINILM,
    "reranker": GOLDEN / "roberta-rerank-pooler",
    "classifier": GOLDEN / "distilbert-sentiment",
    "tagger": GOLDEN / "bert-ner",
    "sparse": GOLDEN / "splade-distilbert-modules",
    "late": GOLDEN / "colbert-v2",
}

# All checks but one: a body that our document allows may still be refused, as for an empty list of texts.
ALL = ("--checks", "all", "--exclude-checks", "positive_data_acceptance")
SOME = (
    "--checks",
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
)


class Several(Server):
    """A server of several models instead of one."""

    def __init__(self, folder: Path, cache_dir: Path, models: dict[str, Path]) -> None:
        config = folder.with_suffix(".yaml")
        named = [f"{name}={path}" for name, path in models.items()]
        config.write_text(json.dumps({"model_metadata": {"bei": {"models": named}}}))  # JSON is YAML too
        super().__init__(folder, cache_dir, config=config)
        for name in ("model_id", "served_model_name"):
            del self._settings[name]


@pytest.fixture(scope="module")
def _every(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Several(tmp_path_factory.mktemp("every") / "server", cache_of(tmp_path_factory), MODELS) as server:
        yield server


@pytest.fixture
def every(_every: Server) -> Iterator[Server]:
    with no_bugs(_every):
        yield _every


def run(
    document: str,
    server: Server,
    folder: Path,
    *options: str,
    phases: str = "coverage,fuzzing",
    num_examples: int = 5,
) -> None:
    """Sends what schemathesis makes of a document. Raises AssertionError with its report where a reply is wrong.

    `num_examples` is the number of generated requests of an operation; those of the coverage are always the same.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", document, "--url", server.url]
    command += ["--phases", phases, "--seed", "1", "--max-examples", str(num_examples)]
    report = subprocess.run([*command, "--no-color", *options], cwd=folder, capture_output=True, text=True, check=False)
    assert report.returncode == 0, report.stdout + report.stderr
    assert re.search(r"\b[1-9]\d* generated", report.stdout), report.stdout


@pytest.mark.parametrize(
    ("phases", "num_examples"),
    [("fuzzing", 5), pytest.param("coverage,fuzzing", 15, marks=pytest.mark.long)],
)
def test_every_reply_is_as_our_document_says(every: Server, tmp_path: Path, phases: str, num_examples: int) -> None:
    before = every.metrics()
    run(f"{every.url}/openapi.json", every, tmp_path, *ALL, phases=phases, num_examples=num_examples)
    after = every.metrics()
    assert after["te_request_success"] > before.get("te_request_success", 0)  # not all of it is refused
    assert after.get("te_request_failure", 0) > before.get("te_request_failure", 0)


@pytest.mark.parametrize("num_examples", [2, pytest.param(5, marks=pytest.mark.long)])
def test_every_reply_of_an_embedder_is_as_teis_clients_expect(bei: Server, tmp_path: Path, num_examples: int) -> None:
    run(str(TEI), bei, tmp_path, *SOME, num_examples=num_examples)
    assert bei.get("/health").status_code == 200


@pytest.mark.long
def test_every_reply_of_any_model_is_as_teis_clients_expect(every: Server, tmp_path: Path) -> None:
    # TEI has one model and does not care for `model`, which chooses one here: an unknown one is a 404.
    run(str(TEI), every, tmp_path, *SOME, "--exclude-path", "/v1/embeddings")
    assert every.get("/health").status_code == 200
