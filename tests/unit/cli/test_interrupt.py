"""Ctrl-C and SIGTERM while a model is fetched."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests import hub as hubs
from tests.fakes import SAFETY_S
from tests.hub import TOKENIZER, Hub, as_bytes, pack

FILES: dict[str, object] = {
    "config.json": {"architectures": ["BertModel"], "max_position_embeddings": 64},
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "model.safetensors": pack({"x": ("F32", np.zeros(1000, np.float32))}),
}


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the programs that the test starts; those of a job in a shell's background would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_ends_a_download_although_the_hub_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, ended = threading.Event(), threading.Event()

    def stall(handler: object, digest: str) -> None:
        asked.set()
        ended.wait(SAFETY_S)

    monkeypatch.setattr(hubs._Handler, "_send_blob", stall)
    with Hub() as hub:
        hub.add("a/b", as_bytes(FILES))
        environ = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "*", "PATH": os.environ["PATH"]}
        # Longer than the test waits, so that only the interrupt ends the command.
        environ |= {"HF_HUB_DOWNLOAD_TIMEOUT": str(int(2 * SAFETY_S)), "HF_HUB_ETAG_TIMEOUT": str(int(2 * SAFETY_S))}
        command = [sys.executable, "-m", "bei_core.cli", "pull", "a/b", "--cache-dir", str(tmp_path / "bei")]
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert asked.wait(SAFETY_S)
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=SAFETY_S)
            finally:
                process.kill()
                ended.set()
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in errors


# In a namespace of its own, `bei` is PID 1, for which Linux ignores a signal without a handler, as in a container.
_AS_PID_1 = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.parametrize("prefix", [(), _AS_PID_1], ids=["child", "pid 1"])
def test_sigterm_ends_a_start_at_once_although_the_source_says_nothing(tmp_path: Path, prefix: tuple[str, ...]) -> None:
    """The source accepts connections and never answers. The file of the unix socket is left by no clean end."""
    if prefix and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a namespace of processes cannot be made on this machine")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(SAFETY_S)
        url, path = f"http://127.0.0.1:{silent.getsockname()[1]}/m.tar.gz", tmp_path / "socket"
        words = ["serve", "--model-id", url, "--port", "0", "--uds-path", str(path), "--cache-dir", str(tmp_path)]
        command = [*prefix, sys.executable, "-m", "bei_core.cli", *words]
        environ = {"PATH": os.environ["PATH"], "NO_PROXY": "*"}
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
            try:
                connection, _ = silent.accept()
                assert path.exists()
                os.kill(_bei_of(process.pid) if prefix else process.pid, signal.SIGTERM)
                _, errors = process.communicate(timeout=SAFETY_S)
            finally:
                process.kill()
        connection.close()
    assert process.returncode == 143
    assert "Traceback" not in errors


def _bei_of(pid: int) -> int:
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("json_output", [False, True])
def test_a_process_that_a_library_keeps_from_ending_says_why_it_ends(json_output: bool) -> None:
    code = f"""
import hashlib, threading
from bei_core.cli import signals
from bei_core.logs import configure_logging
signals._UNWIND_S = 0.1
configure_logging(json_output={json_output})
with signals.interrupted_by_sigterm():
    threading.Timer(0.5, lambda: print("ready", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
    with _ready(code) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SAFETY_S)
    assert process.returncode == 143
    (line,) = errors.splitlines()
    assert (json.loads(line)["message"] if json_output else line).startswith("error: ended by SIGTERM")


def test_a_second_signal_ends_a_server_whose_main_thread_is_in_a_library() -> None:
    code = """
import asyncio, hashlib, threading
from types import SimpleNamespace
from bei_core.http.server.run import _Server

async def run():
    settings = SimpleNamespace(drain_timeout_s=1000.0)
    server = _Server(SimpleNamespace(service=SimpleNamespace(settings=settings)), None, None)
    told = server._end_on_signals()
    print("ready", flush=True)
    await told.wait()
    threading.Timer(0.5, lambda: print("told", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

asyncio.run(run())
"""
    with _ready(code) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "told\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SAFETY_S) == -signal.SIGTERM


@contextmanager
def _ready(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs the code and has printed its first line; killed at the end."""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_the_server_replaces_the_handler() -> None:
    """A drain takes longer than the 2 s that a command may take. In a process of its own, which signals may end."""
    code = """
import signal, threading, time
from bei_core.cli import signals

signals._UNWIND_S = 0.0
before, told = signal.getsignal(signal.SIGTERM), threading.Event()
with signals.interrupted_by_sigterm() as terminated:
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    print("ready", flush=True)
    told.wait()
    time.sleep(0.1)  # for the thread that would end the process
    print(terminated.is_set())
print(signal.getsignal(signal.SIGTERM) == before)
"""
    with _ready(code) as process:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=SAFETY_S)
    assert (process.returncode, said) == (0, "False\nTrue\n")


def test_a_command_that_ends_the_process_of_the_tests_fails_its_test() -> None:
    with pytest.raises(AssertionError, match=r"os\._exit\(143\)"):
        os._exit(143)
