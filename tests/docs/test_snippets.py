"""Every fenced block of the documents is run, or says on the line before why it is not.

Blocks talk to `http://localhost:7997` (an embedding model), `:7998` (a reranker) and `:7999` (a classifier); here these
are three servers on free ports, the last two with very small models.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import metadata
from pathlib import Path

import click
import pytest
import yaml

from bei_core.cli.main import app
from bei_core.config.settings import Settings
from tests.conftest import MINILM
from tests.docs.documents import DOCUMENTS, ROOT, Block, blocks
from tests.e2e.environments import run_in, run_in_node
from tests.e2e.server import Server, cache_of, wait_until
from tests.fakes import SAFETY_S
from tests.golden.cases import GOLDEN

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # it sends from the moment of its import

# The clients' frameworks leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

MODELS = {7997: MINILM, 7998: GOLDEN / "bert-rerank-pad7", 7999: GOLDEN / "bert-topics-bf16-sharded"}
BASETEN = {"embedder": 7997, "reranker": 7998}  # model-NAME.api.baseten.co stands for a port

PYTHON = [block for block in blocks() if block.language == "python" and not block.reason]
SHELL = [block for block in blocks() if block.language == "sh" and not block.reason]
NODE = [block for block in blocks() if block.language == "js" and not block.reason]
RUN = {"python", "sh", "js", "yaml", "json"}
DRAWN = {"text", "mermaid"}
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cache_of(tmp_path_factory)


@pytest.fixture(scope="module")
def urls(server_of: Callable[[Path], Server]) -> Iterator[dict[str, str]]:
    """What a document's addresses stand for."""
    found = {f"http://localhost:{port}": server_of(model).url for port, model in MODELS.items()}
    for name, port in BASETEN.items():
        place = f"https://model-{name}.api.baseten.co/environments/production/sync"
        found[place] = found[f"http://localhost:{port}"]
    yield found
    gc.collect()  # what the clients left open is found here, not in another file's test


def placed(text: str, urls: Mapping[str, str]) -> str:
    """A snippet with the addresses of the servers that run here."""
    for address, url in urls.items():
        text = text.replace(address, url)
    return text


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(
    block: Block, urls: dict[str, str], cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", "any")
    monkeypatch.setenv("BEI_CACHE_DIR", str(cache_dir))
    (tmp_path / ".models").symlink_to(MINILM.parent)
    monkeypatch.chdir(tmp_path)  # where a block may write
    code = placed(block.text, urls)
    if block.venv:
        run_in(ROOT / block.venv, ["-W", "ignore", "-c", code], environ={"HF_HUB_OFFLINE": "0"})
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of clients among themselves
        exec(compile(code, str(block), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", NODE, ids=str)
def test_javascript_runs(block: Block, urls: dict[str, str]) -> None:
    run_in_node(placed(block.text, urls))


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_run(block: Block, urls: dict[str, str], cache_dir: Path, tmp_path: Path) -> None:
    if "curl" in block.text and shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (tmp_path / ".models").symlink_to(MINILM.parent)
    (tmp_path / ".curlrc").write_text("fail\n")  # an error's status is curl's failure
    environ = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "BEI_CACHE_DIR": str(cache_dir),
        "HF_HUB_OFFLINE": "1",
    }
    for command in commands(placed(block.text, urls)):
        if command.startswith("bei serve"):
            serves(command, environ, tmp_path)
        else:
            done = subprocess.run(
                ["bash", "-euc", command], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def serves(command: str, environ: Mapping[str, str], folder: Path) -> None:
    """Starts a server by its command line, on a free port, and ends it once it is healthy."""
    log, port = folder / "log", free_port()
    line = [*shlex.split(command), "--hostname", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(line, env=dict(environ), cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: is_healthy(port) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SAFETY_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=SAFETY_S):
            return True
    except OSError:  # nothing listens yet, or it answers 503
        return False


@pytest.mark.parametrize("block", [block for block in blocks() if block.language in {"yaml", "json"}], ids=str)
def test_configurations_and_bodies_are_read(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
        return
    config = yaml.safe_load(block.text)
    if "model_metadata" in config:
        Settings.from_truss_config(config)


def test_every_block_is_run_or_says_why_not() -> None:
    unexplained = [str(block) for block in blocks() if block.language not in RUN | DRAWN and not block.reason]
    assert not unexplained
    fences = sum(
        line.lstrip().startswith("```") for document in DOCUMENTS for line in document.read_text().splitlines()
    )
    assert fences == 2 * len(blocks())  # none is written in a way that is not found
    assert all(block.reason is None or len(block.reason.split()) >= 2 for block in blocks())
    assert PYTHON
    assert NODE
    assert SHELL


@pytest.mark.parametrize("block", [block for block in blocks() if block.language == "sh"], ids=str)
def test_flags_targets_files_and_extras_exist(block: Block) -> None:
    """This also checks blocks that are not run."""
    makefile = (ROOT / "Makefile").read_text()
    extras = set(metadata("bei-core").get_all("Provides-Extra") or ())
    for words in programs(block.text):
        name = words[0].rpartition("/")[2]
        if name == "bei":
            unknown = unknown_flags(words[1:])
            assert not unknown, f"bei has no {', '.join(unknown)}"
        elif name == "make":
            targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert all(f"\n{target}:" in makefile for target in targets), words
        elif name.startswith("python"):
            files = [word for word in words[1:2] if word.endswith(".py")]
            assert all((ROOT / file).is_file() for file in files), words
        for asked in re.findall(r"bei-core\[([\w,]+)\]", " ".join(words)):
            assert set(asked.split(",")) <= extras, words


def programs(text: str) -> Iterator[list[str]]:
    """The words of each program of a block; variables that are set before it are left out."""
    for command in commands(text):
        lexer = shlex.shlex(command, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                yield from [words] if words else []
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def unknown_flags(words: list[str]) -> list[str]:
    """The flags of a `bei` command line that the command does not have."""
    command: click.Command = app
    known: set[str] = {"--help"}
    unknown = []
    for word in words:
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), word) or command
        known |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            unknown.append(flag)
    return unknown


def commands(text: str) -> list[str]:
    """The commands of a block, without comments: a line each, unless it ends with a backslash or inside quotes."""
    found: list[str] = []
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += re.sub(r"(^|\s)#.*", "", line)
        if pending.count("'") % 2:
            pending += "\n"
        elif pending.strip():
            found.append(pending.strip())
            pending = ""
    if pending.strip():
        raise AssertionError(f"a quote is not closed: {pending}")
    return found
