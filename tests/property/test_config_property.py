from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError

COUNTS = (
    "max_batch_tokens",
    "max_batch_requests",
    "max_client_batch_size",
    "max_concurrent_requests",
    "max_queue_tokens",
    "payload_limit",
    "tokenization_workers",
    "port",
)
LAYER = st.dictionaries(st.sampled_from(COUNTS), st.integers(1, 65_535))
NAME = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20)


@given(block=LAYER, bare=LAYER, ours=LAYER, flags=LAYER)
def test_each_setting_comes_from_the_strongest_source_that_has_it(
    tmp_path_factory: pytest.TempPathFactory,
    block: dict[str, int],
    bare: dict[str, int],
    ours: dict[str, int],
    flags: dict[str, int],
) -> None:
    config = tmp_path_factory.getbasetemp() / "config.yaml"
    config.write_text(yaml.safe_dump({"model_name": "m", "model_metadata": {"bei": block}}))
    environ = {name.upper(): str(value) for name, value in bare.items()}
    environ |= {f"BEI_{name.upper()}": str(value) for name, value in ours.items()}
    settings = Settings.load(flags, environ, config)
    defaults = Settings.load({}, {})
    for name in COUNTS:
        given_by = [layer[name] for layer in (flags, ours, bare, block) if name in layer]
        assert getattr(settings, name) == (given_by[0] if given_by else getattr(defaults, name))


@given(NAME.filter(lambda name: name not in Settings.__struct_fields__))
def test_an_unknown_name_is_refused_at_any_depth(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting model_metadata.bei.{name}"):
        Settings.from_truss_config({"model_metadata": {"bei": {name: 1}}})
    with pytest.raises(ConfigError, match="unknown setting --"):
        Settings.load({name: 1}, {})


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12)))
def test_a_foreign_environment_changes_nothing(environ: dict[str, str]) -> None:
    foreign = {f"X_{name}": value for name, value in environ.items()} | {"BEI_TRUSS_PYTHON": "/usr/bin/python"}
    assert Settings.load({}, foreign) == Settings.load({}, {})


def test_paths_are_paths_from_every_source() -> None:
    for settings in (
        Settings.load({"cache_dir": Path("/x")}, {}),
        Settings.load({"cache_dir": "/x"}, {}),
        Settings.load({}, {"BEI_CACHE_DIR": "/x"}),
        Settings.from_truss_config({"model_metadata": {"bei": {"cache_dir": "/x"}}}),
    ):
        assert settings.cache_dir == Path("/x")
