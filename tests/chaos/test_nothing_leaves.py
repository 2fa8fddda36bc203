"""Servers and bulk jobs open no connection, and write only into their own folders, also without a home and a name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MINILM
from tests.e2e.server import TEXTS, Server, log_shown, wait_until

WATCHED = Path(__file__).parent / "watched"
_TAP = 'ip link set lo up && ip route add local default dev lo && { ip -6 route add local default dev lo; exec "$@"; }'
TAPPED = ("unshare", "-n", "sh", "-c", _TAP, "sh")
UNKNOWN_UID = 54_321


def prefix_of(log: Path, *more: str) -> tuple[str, ...]:
    return ("env", "-u", "HOME", "-u", "HF_HUB_OFFLINE", f"WATCH_LOG={log}", f"PYTHONPATH={WATCHED}", *more)


def noted(log: Path, cache: Path) -> list[str]:
    """The recorded accesses, except allowed ones: the server's own address, its cache, compiled Python."""
    lines = log.read_text(errors="replace").splitlines()
    allowed = re.compile(
        rf"write ({re.escape(str(cache))}|/dev/|/proc/|.*(\.pyc|/__pycache__))|socket\.getaddrinfo .*127\.0\.0\.1"
    )
    return [line for line in lines if not allowed.match(line) and "127.0.0.1" not in line]


def test_nothing_leaves_the_machine_and_nothing_is_written_outside_the_cache(tmp_path: Path) -> None:
    log, cache = tmp_path / "watched", tmp_path / "cache"
    with Server(tmp_path / "server", cache, prefix_of(log)) as server, log_shown(server):
        assert server.post("/v1/embeddings", {"input": TEXTS[:3]}).status_code == 200
        assert "write" in log.read_text()
        assert noted(log, cache) == []


def is_tapped() -> bool:
    """Whether this user may make a network namespace in which every address is the machine's own."""
    return bool(shutil.which("unshare")) and subprocess.run([*TAPPED, "true"], capture_output=True).returncode == 0


def num_packets(server: Server) -> int:
    """The packets that were sent in the server's network namespace."""
    lines = Path(f"/proc/{server.pid}/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[9]) for line in lines)


def test_no_packet_is_sent_by_any_library(tmp_path: Path) -> None:
    """In the namespace, lookups and connections to any address are packets of the only device, also those of C++."""
    if not is_tapped():
        pytest.skip("this user may make no network namespace")
    with Server(tmp_path / "server", tmp_path / "cache", TAPPED) as server, log_shown(server):
        assert num_packets(server) == 0
        enter = ["nsenter", "-t", str(server.pid), "-n", sys.executable, "-c"]
        lookup = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'a', ('192.0.2.1', 53))"
        subprocess.run([*enter, lookup], check=True)
        assert num_packets(server) > 0, "a packet is seen"


def test_a_bulk_job_writes_only_into_its_cache_and_its_output(tmp_path: Path) -> None:
    log, own, source = tmp_path / "watched", tmp_path / "own", tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{"text": "b"}\n')
    words = ["--model-id", str(MINILM), "--cache-dir", str(own / "cache"), "--output", str(own / "output")]
    command = [*prefix_of(log), str(Path(sys.executable).with_name("bei")), "embed-dataset", str(source), *words]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (own / "output" / "_manifest.json").exists()
    assert "write" in log.read_text()
    assert noted(log, own) == []


def test_without_our_guard_openvino_alone_would_write_into_the_home(tmp_path: Path) -> None:
    """So the test above would fail without the guard; if this one fails, OpenVINO no longer needs it."""
    log = tmp_path / "watched"
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WATCH_LOG": str(log), "PYTHONPATH": str(WATCHED)}
    subprocess.run([sys.executable, "-c", "import openvino"], env=environ, check=True, stderr=subprocess.DEVNULL)
    assert any("/intel/" in line for line in noted(log, tmp_path / "cache"))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may become another user")
def test_a_user_without_a_name_or_a_home_is_served(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path("/tmp") / f"bei-unnamed-user-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        as_unnamed_user = ("setpriv", f"--reuid={UNKNOWN_UID}", f"--regid={UNKNOWN_UID}", "--clear-groups")
        if os.system(" ".join([*as_unnamed_user, sys.executable, "-c", "'import bei_core'"])) != 0:
            pytest.skip("another user may not read this checkout")
        with Server(folder / "server", folder / "cache", prefix_of(folder / "watched", *as_unnamed_user)) as server:
            assert server.post("/v1/embeddings", {"input": TEXTS[:3]}).status_code == 200
            assert noted(folder / "watched", folder / "cache") == []
            wait_until(lambda: "Traceback" not in server.log)
    finally:
        shutil.rmtree(folder)
