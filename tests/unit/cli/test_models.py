"""`bei pull` and `bei models`: a model is fetched from a hub on loopback, listed, described and removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from click.testing import CliRunner, Result

from bei_core.cli import main as cli
from bei_core.config.settings import Settings
from bei_core.engines.cache import EngineCache
from bei_core.errors import ConfigError
from tests.golden.cases import GOLDEN
from tests.hub import Hub

REPO = "owner/name"
FOLDER = GOLDEN / "bert-cls-normalize"


@pytest.fixture
def caches(tmp_path: Path) -> tuple[str, ...]:
    """Flags that name two empty caches."""
    return "--cache-dir", str(tmp_path / "bei"), "--huggingface-hub-cache", str(tmp_path / "hub")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with one repository."""
    with Hub() as server:
        files = [path for path in FOLDER.rglob("*") if path.is_file()]
        server.add(REPO, {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in files})
        yield server


def pull(hub: Hub, *words: str) -> list[str]:
    """What `bei pull` prints, in a process of its own because huggingface_hub reads its environment once."""
    environ = {"HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1,localhost", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "bei_core.cli", "pull", *words]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.splitlines()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), env={"BEI_MODELS": "", "MODEL_ID": ""})


def ok(*words: str) -> list[str]:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.splitlines()


def test_a_pulled_model_is_listed_described_and_removed(
    hub: Hub,
    caches: tuple[str, ...],
) -> None:
    checkpoint, engine = pull(hub, REPO, *caches)
    assert Path(checkpoint.removeprefix("checkpoint ")).is_dir()
    assert Path(engine.removeprefix("engine ")).is_dir()
    listed = ok("models", "list", *caches)
    assert [line.split("  ")[0] for line in listed] == [REPO, REPO]
    assert {line.split("  ")[2] for line in listed} == {"checkpoint", "openvino f32"}
    described = ok("models", "show", REPO, *caches)
    assert described[:2] == ["kind: embedding", "architecture: BertModel"]
    assert ok("models", "rm", REPO, *caches)[-1].endswith(" MB removed")
    assert ok("models", "list", *caches) == []


def test_pull_asks_the_hub_once_for_each_revision_and_file(hub: Hub, caches: tuple[str, ...]) -> None:
    hub.requests.clear()
    pull(hub, REPO, *caches)
    asked = Counter(path for method, path in hub.requests if method == "HEAD" and "/resolve/" in path)
    assert asked
    assert set(asked.values()) == {1}, "a file is looked up again"
    assert [path for _, path in hub.requests].count(f"/api/models/{REPO}/revision/main") == 1


def test_what_a_server_has_open_stays(hub: Hub, caches: tuple[str, ...]) -> None:
    _, engine = pull(hub, REPO, *caches)
    folder = Path(engine.removeprefix("engine "))
    lease = EngineCache.of(Settings.load({"cache_dir": Path(caches[1])}, {})).lease(folder.name)
    result = run("models", "rm", REPO, *caches)
    assert isinstance(result.exception, ConfigError)
    assert str(folder) in str(result.exception)
    assert folder.is_dir()
    lease.release()


def test_a_folder_is_described_and_removed_by_the_path_that_serving_took(
    caches: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list has the absolute path of a folder that was named by a relative one."""
    copytree(FOLDER, tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    ok("embed", "--model-id", "folder", "--cache-dir", caches[1], "a text")
    (line,) = ok("models", "list", *caches)
    assert line.startswith(f"{tmp_path / 'folder'}  ")
    assert ok("models", "show", "folder/", *caches)[0] == "kind: embedding"
    assert ok("models", "rm", "./folder", *caches)[-1].endswith(" MB removed")
    assert ok("models", "list", *caches) == []


def test_the_page_of_a_repository_is_described_and_removed(hub: Hub, caches: tuple[str, ...]) -> None:
    pull(hub, REPO, *caches)
    page = f"https://huggingface.co/{REPO}"
    assert ok("models", "show", page, *caches)[0] == "kind: embedding"
    result = run("models", "rm", f"{page}/tree/main", *caches)
    assert result.exit_code == 1
    assert f"names one revision; give {REPO}, which means all of them" in str(result.exception)
    assert ok("models", "rm", page, *caches)[-1].endswith(" MB removed")
    assert ok("models", "list", *caches) == []


@pytest.mark.parametrize("words", [("show", REPO), ("rm", REPO)])
def test_a_model_that_is_not_here(caches: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = run("models", *words, *caches)
    assert isinstance(result.exception, ConfigError)
    assert "there is nothing of owner/name on this machine" in str(result.exception)


def test_the_page_of_a_repository_is_the_repository(hub: Hub, caches: tuple[str, ...]) -> None:
    assert pull(hub, REPO, *caches) == pull(hub, f"https://huggingface.co/{REPO}", *caches)


@pytest.mark.parametrize(
    ("page", "revision"),
    [
        ("https://huggingface.co/a/b", None),
        ("https://hf.co/a/b/", None),
        ("http://huggingface.co/a/b/tree/v1.5", "v1.5"),
    ],
)
def test_a_page_names_the_revision_too(page: str, revision: str | None) -> None:
    for settings in (Settings(model_id=page), Settings(models=(page,))):
        (one,) = settings.each()
        assert (one.model_id, one.revision) == ("a/b", revision)
    (one,) = Settings(model_id=page, revision="main").each()
    assert one.revision == "main"
