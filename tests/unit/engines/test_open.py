"""Engine folders whose files were changed and sealed again: the error names a malformed file, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bei_core.engines import start as starting
from bei_core.engines.manifest import MANIFEST, Manifest, seal
from bei_core.engines.open import build_engine, open_engine
from bei_core.errors import ConfigError, DiskError, EngineCorruptError
from tests.unit.engines.test_provider import World, start, world

__all__ = ["world"]


def seal_again(folder: Path) -> None:
    """Write the manifest again for changed files."""
    content = json.loads((folder / MANIFEST).read_bytes())["manifest"]
    (folder / MANIFEST).unlink()
    seal(folder, msgspec.convert(content | {"files": {}}, Manifest))


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"kind": 3}'])
def test_a_malformed_spec_is_named_also_if_its_digest_is_right(world: World, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "engine"
    build_engine(world.settings(), folder)
    (folder / "spec.json").write_bytes(content)
    seal_again(folder)
    for asked in ({}, {"pooling": "cls"}):
        with pytest.raises(
            EngineCorruptError, match=rf"^engine corrupt: {folder}/spec\.json is not a spec: .+"
        ) as refused:
            start(world.settings(model_id=str(folder), **asked))
        assert len(str(refused.value).splitlines()) == 1


def test_an_engine_that_does_not_suit_the_settings_is_closed(world: World, tmp_path: Path) -> None:
    """One in a process of its own would go on."""
    folder = build_engine(world.settings(), tmp_path / "engine")
    for settings in (
        world.settings(quantization_type="fp8"),
        world.settings(model_id=str(folder), dense_path="2_Dense"),
    ):
        with pytest.raises(ConfigError):
            open_engine(settings)
        assert world.engines.pop().is_closed


def test_an_engine_whose_files_cannot_be_read_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, manifest: Manifest) -> None:
        raise DiskError(f"{folder}: Input/output error")

    build_engine(world.settings())
    monkeypatch.setattr("bei_core.engines.open.check_once", fail)
    monkeypatch.setattr("bei_core.engines.open.check_digests", fail)
    with pytest.raises(DiskError, match="Input/output error"):
        open_engine(world.settings())
    assert world.engines.pop().is_closed


def test_the_tokenizer_is_read_while_the_engine_is_loaded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("bei_core.engines.open.open_model_tokenizer", lambda *given, **others: calls.append(given))
    settings = world.settings(max_batch_tokens=64)
    opened = open_engine(settings)
    assert opened.reading is not None
    assert opened.reading.done()
    opened.read_tokenizer(settings)
    assert calls == [(opened.tokenizer, opened.spec, 64)]


def test_a_process_does_not_load_an_engine_that_replaced_the_one_that_is_served(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would give its vectors to texts that are tokenized for the old one."""
    monkeypatch.setattr(starting, "EngineProcess", lambda load: load)
    monkeypatch.setattr(starting, "configure_logging", lambda **_: None)
    folder = build_engine(world.settings(), tmp_path / "engine")
    load: Any = starting.start_for(world.settings(engine_process=True))(folder, "float32")
    load()
    shutil.rmtree(folder)
    build_engine(world.settings(revision="next"), folder)
    with pytest.raises(
        EngineCorruptError, match=r"was replaced by another engine; start the server again to serve it$"
    ):
        load()
