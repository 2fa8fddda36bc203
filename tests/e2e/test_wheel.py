"""A wheel and an sdist of the sources, each command of which runs in a new environment, of every Python that is here.

Marked `wheel`: run by `make test-wheel` and by CI, not by `make test`. What the wheel depends on comes from PyPI.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from bei_core.cli.main import COMMANDS
from bei_core.truss.init import make
from tests.conftest import MINILM
from tests.docs.test_snippets import free_port, is_healthy
from tests.e2e.environments import ROOT
from tests.e2e.server import WIDTH, wait_until
from tests.fakes import SAFETY_S
from tests.golden.cases import GOLDEN

pytestmark = pytest.mark.wheel

UV = Path(sys.executable).with_name("uv")
CONFIG = ROOT / "tests" / "data" / "baseten" / "BEI-Bert-all-MiniLM-L6-v2.yaml"
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
GROUPS = [pytest.param(version, marks=pytest.mark.xdist_group(version)) for version in VERSIONS]  # a worker for each
LEFT_OUT = shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info", "shared", "benchmarks", "tests")


def find_python(version: str) -> str | None:
    """The path of an interpreter of that version on this machine; pyenv's are looked for where pyenv keeps them."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [f"python{version}", *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")))]
    for candidate in candidates:
        with suppress(OSError, subprocess.CalledProcessError):
            code = "import sys, venv; print(sys.executable)"
            return subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return None


def run(*command: str | Path, **environ: str) -> str:
    """What a program prints on standard output. Raises AssertionError with all that it prints if it fails."""
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("dist")
    sources = folder / "sources"
    shutil.copytree(ROOT, sources, ignore=LEFT_OUT)
    run(UV, "build", "-q", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, sources)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


class Installed:
    """The wheel in an environment of its own, with its command `bei`."""

    def __init__(self, folder: Path, python: str, wheel: Path) -> None:
        self.folder = folder
        self.venv = folder / "venv"
        run(UV, "venv", "-q", "--no-config", "--python", python, self.venv)
        self.install(str(wheel))

    def install(self, *requirements: str) -> None:
        """Installs packages into the environment."""
        run(UV, "pip", "install", "-q", "--no-config", "--python", self.venv / "bin" / "python", *requirements)

    @property
    def environ(self) -> dict[str, str]:
        """Nothing of the checkout's own environment, and a cache of engines of its own."""
        return {"PATH": f"{self.venv / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder), "HF_HUB_OFFLINE": "1"}

    def ended(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """The command's process after its end. It ran in a folder that is not the checkout."""
        command = [str(self.venv / "bin" / "bei"), *map(str, words)]
        return subprocess.run(
            command, env=self.environ, cwd=self.folder, capture_output=True, text=True, check=False, timeout=SAFETY_S
        )

    def bei(self, *words: str | Path) -> str:
        """What the command prints. Raises AssertionError if it fails."""
        done = self.ended(*words)
        assert done.returncode == 0, f"{done.args}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def served(self) -> Iterator[str]:
        """The address of `bei serve`; it has to drain and end with status 0."""
        port = free_port()
        words: Sequence[str | Path] = ("serve", "--model-id", MINILM, "--hostname", "127.0.0.1", "--port", str(port))
        command = [str(self.venv / "bin" / "bei"), *map(str, words)]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=self.environ, cwd=self.folder, stdout=log, stderr=log)
        try:
            wait_until(lambda: is_healthy(port) or process.poll() is not None)
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(SAFETY_S) == 0, (self.folder / "log").read_text()
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module", params=GROUPS)
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    python = find_python(request.param)
    if python is None:
        pytest.skip(f"there is no Python {request.param} on this machine")
    return Installed(tmp_path_factory.mktemp(request.param), python, wheel)


def test_the_sdist_has_what_it_is_built_from_and_no_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "model/model.py", "pyproject.toml", "setup.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "."))]


def test_the_wheel_has_the_whole_package(wheel: Path) -> None:
    """`bei truss init` copies the package, so what is missing in the wheel would be missing in the Truss."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith("bei_core/")}
    files = {path for path in (ROOT / "packages" / "bei_core").rglob("*") if path.is_file()}
    tracked = {f"bei_core/{path.relative_to(ROOT / 'packages' / 'bei_core').as_posix()}" for path in files}
    assert found == {name for name in tracked if "__pycache__" not in name} | {"bei_core/truss/model.py"}


def test_every_command_runs(installed: Installed) -> None:
    for name in COMMANDS:
        assert "Usage: bei" in installed.bei(name, "--help")
    assert re.fullmatch(r"bei \d+\.\d+\.\d+\n", installed.bei("--version"))
    assert "engine openvino          ready" in installed.bei("doctor")
    assert "_bei_completion" in installed.bei("completion", "bash")
    engine = installed.folder / "engine"
    installed.bei("build", "--model-id", MINILM, "--output", engine)
    assert len(json.loads(installed.bei("embed", "--model-id", engine, "a text"))) == WIDTH
    with installed.served() as url:
        reply = httpx.post(f"{url}/embed", json={"inputs": "a text"}, timeout=SAFETY_S)
        assert len(reply.json()[0]) == WIDTH
        installed.bei("bench", "--url", url, "--clients", "2", "--num-requests", "8", "--warmup", "2")
    ranks = installed.bei("rerank", "--model-id", GOLDEN / "bert-rerank-pad7", "a query", "a text", "another")
    assert sorted(json.loads(line)["index"] for line in ranks.splitlines()) == [0, 1]
    assert "score" in installed.bei("classify", "--model-id", GOLDEN / "bert-topics-bf16-sharded", "a text")
    assert "engine " in installed.bei("pull", MINILM)
    assert "all-MiniLM-L6-v2" in installed.bei("engines", "list")
    assert "whole" in installed.bei("engines", "verify")
    assert "0.0 MB removed" in installed.bei("engines", "prune")
    assert "all-MiniLM-L6-v2" in installed.bei("models", "list")
    assert "kind: embedding" in installed.bei("models", "show", MINILM)
    assert "MB removed" in installed.bei("models", "rm", MINILM)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("embed-dataset", "texts.csv", "--output", "out", "--model-id", "m"), "jobs"),
        (("capacity", "--model", "m", "--rate", "5", "--slo-p99-ms", "10"), "capacity"),
        (("bench", "--plot", "plot.png"), "bench"),
        (("embed", "--model-id", "m", "--format", "parquet", "--output", "o.parquet", "a text"), "parquet"),
        (("engines", "pull", "s3://bucket/engine"), "s3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_command_names_the_extra_that_it_needs(installed: Installed, words: tuple[str, ...], extra: str) -> None:
    done = installed.ended(*words)
    assert done.returncode == (69 if extra == "s3" else 78)
    assert f"pip install 'bei-core[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", [(), ("--docker-server",)], ids=["model.py", "docker_server"])
def test_truss_init_makes_what_it_makes_in_the_checkout(installed: Installed, form: tuple[str, ...]) -> None:
    output = installed.folder / "-".join(("truss", *form))
    installed.bei("truss", "init", "--cpu", *form, "--from", CONFIG, output)
    found = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert found == make(CONFIG, output, cpu=True, docker_server=bool(form)).files


def test_an_extra_is_installed_as_errors_say(installed: Installed) -> None:
    """Without another copy of BEI: the package that is there has the extra."""
    installed.install("bei-core[otlp]")
    code = "import opentelemetry.sdk, importlib.metadata as m; print(m.version('bei-core'))"
    assert run(installed.venv / "bin" / "python", "-c", code).strip() == installed.bei("--version").split()[1]
