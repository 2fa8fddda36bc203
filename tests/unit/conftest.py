"""Fixtures of the unit tests of more than one room."""

from __future__ import annotations

import pytest

from bei_core.config.settings import Settings
from bei_core.http.server.sockets import Sockets


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that `bei serve` was started with; nothing is served."""
    opened: list[Settings] = []
    monkeypatch.setattr("bei_core.serving.service.Service.open_all", opened.append)
    monkeypatch.setattr("bei_core.http.server.sockets.bind", lambda settings: Sockets())
    monkeypatch.setattr("bei_core.http.server.run.serve", lambda services, sockets, traces: None)
    monkeypatch.setattr("bei_core.http.traces.open_traces", lambda settings: None)
    return opened
