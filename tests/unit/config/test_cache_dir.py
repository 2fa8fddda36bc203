"""The default of cache_dir: a network volume, else the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from bei_core.config.cache_dir import default_cache_dir
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError


def load(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> Settings:
    return Settings.load(flags or {}, environ or {}, None)


def test_the_cache_is_the_users() -> None:
    assert load(environ={"HOME": "/home/u"}).cache_dir == Path("/home/u/.cache/bei")
    assert load(environ={"HOME": "/home/u", "XDG_CACHE_HOME": "/xdg"}).cache_dir == Path("/xdg/bei")
    assert default_cache_dir({"HOME": "/home/u", "XDG_CACHE_HOME": "relative"}) == Path("/home/u/.cache/bei")
    assert load(environ={"XDG_CACHE_HOME": "/xdg", "BEI_CACHE_DIR": "/data"}).cache_dir == Path("/data")
    assert load({"cache_dir": "~/x"}).cache_dir == Path("~/x").expanduser()


def test_the_cache_is_a_network_volumes_where_one_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = organisation, deployment = tmp_path / "org", tmp_path / "model"
    environ = {"HOME": "/home/u", "XDG_CACHE_HOME": "/xdg"}
    assert default_cache_dir(environ, volumes) == Path("/xdg/bei"), "neither is there"
    deployment.mkdir()
    assert default_cache_dir(environ, volumes) == deployment / "bei"
    organisation.mkdir()
    assert default_cache_dir(environ, volumes) == organisation / "bei"
    assert default_cache_dir(environ, ()) == Path("/xdg/bei")
    monkeypatch.setattr("os.access", lambda path, mode: path != organisation)  # mounted, and not to be written
    assert default_cache_dir(environ, volumes) == deployment / "bei"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert default_cache_dir({"HOME": "/home/u"}, volumes) == Path("/home/u/.cache/bei")


def test_the_cache_needs_a_home_or_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match=r"there is no home directory .*set cache_dir \(BEI_CACHE_DIR\)"):
        default_cache_dir({}, ())
    assert load(environ={"BEI_CACHE_DIR": "/data"}).cache_dir == Path("/data")
