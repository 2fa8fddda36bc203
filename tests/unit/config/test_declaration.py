"""Settings are declared once: what the declaration gives to flags, variables and docs/settings.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from bei_core.config.declaration import About, declared
from bei_core.config.settings import SETTINGS
from scripts import make_settings_doc


class Example(msgspec.Struct, kw_only=True):
    count: Annotated[Annotated[int, Meta(ge=1)] | None, About("A count.", unset="all")] = None
    share: Annotated[Annotated[float, Meta(gt=0, le=1)], About("A share.", flags=("-s", "--share"))] = 0.5
    way: Annotated[Literal["a", "b"] | None, About("A way.", bare=False, environ=("OTHER",))] = None
    names: Annotated[tuple[str, ...], About("Names.")] = ()
    folder: Annotated[Path, About("A folder.")] = msgspec.field(default_factory=Path)
    plain: Annotated[bool, Meta(description="Of msgspec.")] = True
    undescribed: int = 3


def test_a_declaration_says_type_choices_limits_and_default() -> None:
    fields = declared(Example)
    assert {name: field.plain for name, field in fields.items()} == {
        "count": int,
        "share": float,
        "way": str,
        "names": tuple,
        "folder": Path,
        "plain": bool,
        "undescribed": int,
    }
    assert [name for name, field in fields.items() if field.choices] == ["way"]
    assert fields["way"].choices == ("a", "b")
    limits = {
        name: (field.limits.ge, field.limits.gt, field.limits.le) for name, field in fields.items() if field.limits
    }
    assert limits == {"count": (1, None, None), "share": (None, 0, 1)}
    assert [field.default_text for field in fields.values()] == ["all", "0.5", "", "", "", "true", "3"]
    assert [field.description for field in fields.values()][-2:] == ["Of msgspec.", ""]


def test_a_declaration_says_how_a_setting_is_named_elsewhere() -> None:
    fields = declared(Example)
    assert fields["count"].flags == ("--count",)
    assert fields["share"].flags == ("-s", "--share")
    assert fields["count"].variables == ("BEI_COUNT", "COUNT")
    assert fields["way"].variables == ("BEI_WAY", "OTHER")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_described_in_a_sentence(name: str) -> None:
    described = SETTINGS[name].description
    assert described[0].isupper()
    assert described.endswith(".")
    assert len(described) <= 110


def test_no_two_settings_share_a_flag_or_variable() -> None:
    for names in ("flags", "variables"):
        found = [spelled for setting in SETTINGS.values() for spelled in getattr(setting, names)]
        assert len(found) == len(set(found))
    for setting in SETTINGS.values():
        assert set(setting.about.excludes) < SETTINGS.keys()
    assert make_settings_doc.SECTIONS.keys() < SETTINGS.keys()
    assert next(iter(make_settings_doc.SECTIONS)) == next(iter(SETTINGS))


def test_the_page_of_settings_is_what_the_generator_writes() -> None:
    written = make_settings_doc.PAGE.read_text(encoding="utf-8")
    assert written == make_settings_doc.page(), "run .venv/bin/python scripts/make_settings_doc.py"
    assert all(f"| `{name}` |" in written for name in SETTINGS)
