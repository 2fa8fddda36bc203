"""A Truss as Baseten runs it, less Docker: packed as `truss push` packs it, laid out as the Dockerfile that truss makes
for it says, and served by Truss's own server with the requirements of the image."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx
import yaml

from tests.e2e.environments import ROOT, TRUSS, TRUSS_SERVER, python_of, run_in
from tests.fakes import SAFETY_S

# Runs in .venv-truss. The archive is the one that push uploads; `validate_forbid_extra` is what push alone checks.
# Without a repository, what was uploaded is there already.
_LAY_OUT = """
import sys, tarfile
from pathlib import Path
from truss.base.truss_config import TrussConfig
from truss.cli.cli import truss_cli
from truss.contexts.local_loader import docker_build_emulator as emulator
from truss.remote.baseten.core import archive_dir

target, *repository = map(Path, sys.argv[1:])
upload, context, root = target / "upload", target / "context", target / "root"
for folder in repository:
    TrussConfig.from_yaml(folder / "config.yaml").validate_forbid_extra()
    with archive_dir(folder, config_yaml_override=sys.stdin.buffer.read()) as file:
        tarfile.open(fileobj=file).extractall(upload, filter="data")
TrussConfig.from_yaml(upload / "config.yaml").validate_forbid_extra()
truss_cli(["image", "build-context", str(context), str(upload)], standalone_mode=False)
copy = emulator.copy_tree_or_file

def copy_as_docker(source, place):  # which makes the folders on the way
    place.parent.mkdir(parents=True, exist_ok=True)
    return copy(source, place)

emulator.copy_tree_or_file = copy_as_docker
emulator.DockerBuildEmulator(context / "Dockerfile", context).run(root)
"""

# Runs in .venv-truss-server: what is there against what the image's requirements and constraints ask for.
_DIFFERENCE = """
import sys
from importlib.metadata import distributions
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def read(name):
    lines = (line.split(" #")[0].strip() for line in Path(sys.argv[1], name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and line[0] not in "#-"]

here = {canonicalize_name(found.name): found for found in distributions()}
wanted, waiting = set(), read("requirements.txt")
while waiting:
    requirement = waiting.pop()
    name = canonicalize_name(requirement.name)
    extras = {(name, extra) for extra in requirement.extras or {""}} - wanted
    if name not in here or not requirement.specifier.contains(here[name].version, prereleases=True):
        print(f"{requirement} is asked for and not there")
        continue
    wanted |= extras
    needs = [Requirement(text) for text in here[name].requires or ()]
    waiting += [
        need for need in needs for _, extra in extras if not need.marker or need.marker.evaluate({"extra": extra})
    ]
for name in here.keys() - {name for name, _ in wanted}:
    print(f"{name} is there and nothing asks for it")
for limit in read("constraints.txt"):
    name = canonicalize_name(limit.name)
    if name in here and not limit.specifier.contains(here[name].version, prereleases=True):
        print(f"{limit} is broken by {here[name].version}")
"""

_LISTENS = "Uvicorn running on|listening on"  # Truss's server, or `bei serve`
_TAKEN = "address already in use"


@dataclass(frozen=True)
class Truss:
    """A packed Truss, and the folder that stands for its image's root."""

    upload: Path
    context: Path
    root: Path
    venv: Path = TRUSS_SERVER  # with what the image has installed

    @property
    def config(self) -> dict[str, Any]:
        """The config.yaml of the image."""
        return dict(yaml.safe_load((self.root / "app" / "config.yaml").read_text()))


def lay_out(target: Path, bei: Mapping[str, object]) -> Truss:
    """This repository's Truss under `target`, with `bei` as its model_metadata.bei."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["model_metadata"]["bei"] = dict(bei)
    run_in(TRUSS, ["-c", _LAY_OUT, target, ROOT], given=yaml.safe_dump(config), environ=truss_environ(target))
    return Truss(target / "upload", target / "context", target / "root")


def lay_out_upload(target: Path, venv: Path) -> Truss:
    """The Truss that `target / "upload"` holds; `venv` is for what its image installs."""
    run_in(TRUSS, ["-c", _LAY_OUT, target], environ=truss_environ(target))
    return Truss(target / "upload", target / "context", target / "root", venv)


def truss_environ(folder: Path) -> dict[str, str]:
    """What keeps truss, which has its settings and its copies in `folder`, off the network."""
    settings = folder / "settings" / "truss" / "settings.toml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[preferences]\ncheck_for_updates = false\n")  # it would ask the package index
    return {"XDG_CONFIG_HOME": str(folder / "settings"), "HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def difference(truss: Truss) -> str:
    """How .venv-truss-server differs from what the Truss's image would have, a line each; empty where it does not."""
    return run_in(TRUSS_SERVER, ["-c", _DIFFERENCE, truss.context])


class Server:
    """Truss's server over a laid-out Truss, ready to answer; killed at the end of the `with` block at the latest."""

    ready = "/v1/models/model"

    def __init__(self, truss: Truss, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True)
        self._truss = truss
        self._given = environ or {}
        self._folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Server:
        try:
            while not self._start():  # another process took the port first
                self._kill()
            self._wait_until_ready()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the server has written."""
        return self._log.read_text(errors="replace")

    def terminate(self) -> None:
        """Sends SIGTERM, as Kubernetes does."""
        self._running().send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status."""
        return self._running().wait(SAFETY_S)

    def _start(self) -> bool:
        """Starts the process on a port that was free a moment ago; whether it is this process that listens there."""
        self.port = _free_port()
        config = self._truss.config.get("environment_variables") or {}
        environ = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "HF_HUB_OFFLINE": "1", **config}
        environ |= {"PYTHONPATH": str(self._truss.root / "packages"), "INFERENCE_SERVER_PORT": str(self.port)}
        self._output = self._log.open("wb")
        self._process = subprocess.Popen(
            self.command(),
            cwd=self._truss.root / "app",
            env={**environ, **self._given},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        return self._wait_for(re.compile(f"{_LISTENS}|{_TAKEN}")) != _TAKEN

    def command(self) -> list[str]:
        """What the image's entry point runs."""
        return [python_of(self._truss.venv), "main.py"]

    def _wait_for(self, pattern: re.Pattern[str]) -> str:
        """The first match in the log. Raises AssertionError with the log if the process ends without."""
        limit = time.monotonic() + SAFETY_S
        while time.monotonic() < limit:
            ended = self._running().poll() is not None  # before the log is read: what it wrote last counts
            if found := pattern.search(self.log):
                return found[0]
            if ended:
                break
            time.sleep(0.02)
        raise AssertionError(f"Truss's server did not start:\n{self.log}")

    def _wait_until_ready(self) -> None:
        """Returns once readiness is 200. Raises AssertionError with the log if the process ends before that."""
        limit = time.monotonic() + SAFETY_S
        while time.monotonic() < limit and self._running().poll() is None:
            with suppress(httpx.TransportError):  # it ends while it is asked where the model does not load
                if httpx.get(self.url + self.ready).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"Truss's server did not become ready:\n{self.log}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise AssertionError("the server has not been started")
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._output is not None:
            self._output.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])
