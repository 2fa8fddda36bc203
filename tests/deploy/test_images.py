"""The Dockerfiles: hadolint accepts them, and everything that they copy and install exists."""

from __future__ import annotations

import re

import pytest
import yaml

from bei_core.truss.init import GPU_IMAGE, IN_THE_GPU_IMAGE, REQUIREMENTS, SERVER_REQUIREMENTS
from tests.deploy.tools import DEPLOY, ROOT, run

FILES = ("Dockerfile", "Dockerfile.gpu")


@pytest.mark.parametrize("name", FILES)
def test_hadolint(name: str) -> None:
    assert run("hadolint", "--no-color", name) == ""


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_in_the_context(name: str) -> None:
    """.dockerignore leaves out everything that it does not name."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / name).read_text(), re.MULTILINE)
    words = {word for line in copied for word in line.split()}
    assert words
    assert words <= kept
    assert all((ROOT / word).exists() for word in words)


@pytest.mark.parametrize("name", FILES)
def test_it_runs_without_root_and_says_whether_it_is_healthy(name: str) -> None:
    lines = (DEPLOY / name).read_text()
    assert "\nUSER 10001:10001\n" in lines
    assert "\nHEALTHCHECK " in lines
    command = re.search(r'CMD \["python3", "-c", "(.*)"\]', lines)
    assert command is not None
    compile(command[1].replace('\\"', '"'), name, "exec")


def test_the_gpu_image_installs_what_a_truss_for_gpus_does() -> None:
    text = (DEPLOY / "Dockerfile.gpu").read_text()
    found = {line.strip(' \\"') for line in re.findall(r"^    \S+(?:==|>=)\S+(?: \\)?$", text, re.MULTILINE)}
    needed = {*REQUIREMENTS, *SERVER_REQUIREMENTS}
    left = {line for line in needed if re.split("[=>]", line)[0] not in IN_THE_GPU_IMAGE | {"openvino"}}
    assert found == left | {"setuptools>=77"}
    assert f"ARG BASE={GPU_IMAGE['image']}\n" in text


def test_compose_mounts_what_is_there_and_writes_to_volumes_only() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    server = compose["services"]["bei"]
    assert server["read_only"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    for service in compose["services"].values():
        for source, *_ in (volume.split(":") for volume in service.get("volumes", ())):
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
