"""The addresses that a server binds."""

from __future__ import annotations

import resource
from contextlib import closing
from pathlib import Path

import pytest

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError
from bei_core.http.server.sockets import bind, max_connections


def test_a_server_that_ends_leaves_the_unix_socket_of_the_next_one(tmp_path: Path) -> None:
    """While the first one drains, its path is free for the next one, whose file the first one deleted at its end."""
    settings = Settings(model_id="a", hostname="127.0.0.1", port=0, uds_path=tmp_path / "socket")
    first = bind(settings)
    first.unlink()  # as when it drains
    first.main[-1].close()
    with closing(bind(settings)):
        first.close()
        assert (tmp_path / "socket").is_socket()
    assert not (tmp_path / "socket").exists()
    first.close()


def test_a_path_of_another_kind_is_not_said_to_be_in_use(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        bind(Settings(model_id="a", hostname="127.0.0.1", port=0, uds_path=tmp_path))


def test_a_path_too_long_for_a_file_is_an_error_of_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name too long"):
        bind(Settings(model_id="a", hostname="127.0.0.1", port=0, uds_path=tmp_path / ("a" * 300)))


def test_a_limit_of_open_files_that_leaves_too_few_connections_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ulimit -n 32` the server started, and reset connections while as few as twelve were open."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (32, 32))
    settings, message = Settings(model_id="a", hostname="127.0.0.1", port=0), r"may open 32 files and needs .*ulimit -n"
    with pytest.raises(ConfigError, match=message):
        bind(settings)  # before an engine is built
    with pytest.raises(ConfigError, match=message):
        max_connections(settings)
