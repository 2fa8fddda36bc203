"""A setting is one field: everything else is made from it, and something outside this room reads it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import click
import msgspec
import pytest

from bei_core.cli.flags import flags_of
from bei_core.config import settings as module
from bei_core.config.declaration import About, declared
from bei_core.config.settings import SETTINGS, Settings
from bei_core.engines.quality import Bar
from scripts import make_settings_doc
from tests.docs.documents import ROOT

# Settings that config/ itself turns into another setting, or checks for the caller.
READ_HERE = {"api_key_file": "api_key", "models": "each", "dense_path": "check_dense_path"}


@cache
def attributes(folder: Path) -> set[str]:
    """The names of all attributes that the modules of a folder read, but not those of config/."""
    paths = [path for path in folder.rglob("*.py") if "config" not in path.relative_to(folder).parts]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if not setting.about.no_effect])
def test_every_setting_is_read_outside_of_config(name: str) -> None:
    read = attributes(ROOT / "packages" / "bei_core") | {f"quality_{figure}" for figure in Bar.__struct_fields__}
    assert READ_HERE.get(name, name) in read


def test_a_setting_and_its_flag_are_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    class More(Settings, frozen=True, kw_only=True):
        """The settings after the addition of one field."""

        colour: Annotated[str, About("Colour of the page.", bare=False)] = "blue"

    known = declared(More)
    monkeypatch.setattr(module, "SETTINGS", known)
    config: dict[str, Any] = {"model_metadata": {"bei": {"colour": "green"}}}
    loaded = [
        More.load({"colour": "red"}, {"BEI_COLOUR": "green"}),
        More.load({}, {"BEI_COLOUR": "green"}),
        More.from_truss_config(config),
        More.load({}, {}),
    ]
    assert [msgspec.structs.asdict(settings)["colour"] for settings in loaded] == ["red", "green", "green", "blue"]
    shown = click.Command("serve", params=flags_of(More)).get_help(click.Context(click.Command("serve")))
    assert "--colour TEXT" in shown
    assert "Colour of the page. [default: blue]" in " ".join(shown.split())
    monkeypatch.setattr(make_settings_doc, "SETTINGS", known)
    row = "| `colour` | `--colour`<br>`BEI_COLOUR` | text | blue | Colour of the page. |"
    assert row in make_settings_doc.page()
