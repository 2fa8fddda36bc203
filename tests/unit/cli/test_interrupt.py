"""Ctrl-C while a model is fetched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
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
