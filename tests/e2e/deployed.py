"""Makes running containers of a pushed Truss, in both forms, with the requirements of the image."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.conftest import MINILM
from tests.e2e.baseten import Baseten, Route
from tests.e2e.environments import ROOT, TRUSS, TRUSS_SERVER, python_of
from tests.e2e.truss_server import Server, Truss, lay_out_upload, truss_environ
from tests.golden.cases import GOLDEN

UV = ROOT / ".venv" / "bin" / "uv"

# What a container serves; a request that names none goes to the first that does what its route is for.
MODELS = {
    "embedder": MINILM,
    "ranker": GOLDEN / "bert-rerank-pad7",
    "topics": GOLDEN / "bert-topics-bf16-sharded",
}

# What this repository's Truss is made of.
PARTS = ("config.yaml", ".truss_ignore", "data", "model", "packages")

# As the generated Dockerfile has it, but for the environment that it goes into.
_INSTALL = re.compile(r"^RUN .*\buv pip install .* -r requirements\.txt( -c constraints\.txt)?", re.MULTILINE)


def truss_cli(baseten: Baseten, folder: Path, arguments: Sequence[str], *, home: Path) -> str:
    """What `truss ARGUMENTS` prints in `folder`. Raises AssertionError with that where it fails."""
    environ = {"PATH": os.environ["PATH"], "COLUMNS": "200", **truss_environ(home), **baseten.environ}
    command = [str(TRUSS / "bin" / "truss"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def truss_version() -> str:
    """Of the truss that pushes."""
    command = [str(TRUSS / "bin" / "python"), "-c", "from importlib.metadata import version; print(version('truss'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def copy_of_the_repository(folder: Path) -> Path:
    """This repository's Truss, for a test to change."""
    folder.mkdir(parents=True)
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(baseten: Baseten, folder: Path, venvs: Path) -> Truss:
    """The image of the last upload; images with the same requirements share an environment."""
    baseten.uploads[-1].unpack(folder / "upload")
    truss = lay_out_upload(folder, venvs)
    return Truss(truss.upload, truss.context, truss.root, _installed(truss.context, venvs))


def _installed(context: Path, venvs: Path) -> Path:
    """An environment with what the image's Dockerfile installs and nothing else."""
    found = _INSTALL.search((context / "Dockerfile").read_text())
    assert found, "the Dockerfile no longer installs requirements.txt as it did"
    files = ["-r", "requirements.txt", *(["-c", "constraints.txt"] if found[1] else [])]
    wanted = b"".join((context / name).read_bytes() for name in files[1::2])
    venv = venvs / hashlib.sha256(wanted).hexdigest()[:16]
    if not venv.exists():
        _uv("venv", "--python", _python_of_the_image(), str(venv), cwd=context)
        _uv("pip", "install", "--python", str(venv / "bin" / "python"), *files, cwd=context)
    return venv


def _python_of_the_image() -> str:
    """The interpreter of the image's version where there is one, else the one that the server's tests use."""
    return shutil.which("python3.11") or python_of(TRUSS_SERVER)


def _uv(*arguments: str, cwd: Path) -> None:
    done = subprocess.run([str(UV), *arguments, "-q"], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class DockerServer(Server):
    """The container of a docker_server Truss, without the nginx before it: the gateway rewrites its paths instead."""

    ready = "/health/ready"

    def command(self) -> list[str]:
        """The program that supervisord runs, in this image's folders and on this test's port."""
        config = configparser.RawConfigParser()
        config.read(self._truss.context / "supervisord.conf")
        words = shlex.split(config["program:model-server"]["command"])
        assert words[0] == "python3"
        words[0] = str(self._truss.venv / "bin" / "python")
        words[words.index("--port") + 1] = str(self.port)
        return [re.sub("^/app/", f"{self._truss.root}/app/", word) for word in words]


def rewrites(truss: Truss) -> dict[str, str]:
    """The paths that the image's nginx rewrites; none where the image has none."""
    proxy = truss.context / "proxy.conf"
    if not proxy.exists():
        return {}
    return dict(re.findall(r"rewrite \^(\S+)\$ (\S+) break", proxy.read_text()))


@contextmanager
def deployed(baseten: Baseten, truss: Truss, folder: Path) -> Iterator[Server]:
    """The container of an image, behind the gateway. Checkpoints come from this machine."""
    models = ",".join(f"{name}={path}" for name, path in MODELS.items())
    runtime = {"BEI_MODELS": models, "BEI_CACHE_DIR": str(folder.parent / "cache")}
    kind = DockerServer if truss.config.get("docker_server") else Server
    with kind(truss, folder, runtime) as server:
        baseten.route = Route(server.url, rewrites(truss))
        try:
            yield server
        finally:
            baseten.route = None


def config_without(folder: Path, requirement: str) -> None:
    """Takes one line of its requirements out of a Truss's config.yaml."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    kept = [line for line in config["requirements"] if not line.startswith(f"{requirement}==")]
    assert len(kept) == len(config["requirements"]) - 1
    path.write_text(yaml.safe_dump({**config, "requirements": kept}))


def sizes(truss: Truss) -> Mapping[str, int]:
    """Bytes of each uploaded file."""
    files = (path for path in truss.upload.rglob("*") if path.is_file())
    return {path.relative_to(truss.upload).as_posix(): path.stat().st_size for path in files}
