"""The extras that errors, helps and documents name are extras of the package, so that they can be had as written."""

from __future__ import annotations

import re
from importlib.metadata import metadata

from bei_core.storage.backends import BACKENDS
from tests.docs.documents import DOCUMENTS, ROOT

NAMED = re.compile(r"bei-core\[([^\]]+)\]")
# The names that the program fills in: the kinds of object stores, and those of databases that are sinks.
FILLED_IN = {
    "{backend.extra}": "packages/bei_core/storage/objects.py",
    "{target.kind}": "packages/bei_core/jobs/sinks/base.py",
}


def named() -> dict[str, str]:
    """Each extra that is named in the sources or in a document, and a file that does."""
    files = [*(ROOT / "packages").rglob("*.py"), *DOCUMENTS]
    return {
        extra.strip(): path.relative_to(ROOT).as_posix()
        for path in files
        for names in NAMED.findall(path.read_text(encoding="utf-8"))
        for extra in names.split(",")
    }


def test_every_extra_that_is_named_exists() -> None:
    extras = set(metadata("bei-core").get_all("Provides-Extra") or ())
    found = named()
    assert {name: found.pop(name) for name in FILLED_IN} == FILLED_IN
    assert {"parquet", "otlp", "bench"} <= found.keys()
    unknown = {extra: path for extra, path in found.items() if extra not in extras}
    assert not unknown


def test_every_driver_of_an_object_store_is_an_extra() -> None:
    drivers = [backend for backend in BACKENDS if backend.requirement]
    assert len(drivers) >= 3
    required = {line.replace(" ", "").replace('"', "'") for line in metadata("bei-core").get_all("Requires-Dist") or ()}
    for backend in drivers:
        assert f"{backend.requirement};extra=='{backend.extra}'" in required


def test_every_kind_of_sink_is_an_extra() -> None:
    folder = ROOT / "packages" / "bei_core" / "jobs" / "sinks"
    kinds = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert "lancedb" in kinds
    assert kinds <= set(metadata("bei-core").get_all("Provides-Extra") or ())
