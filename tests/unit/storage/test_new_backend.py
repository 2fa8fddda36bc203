"""A storage backend is one class: with nothing else, checkpoints and engines go through it, and texts name it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.manifest import verify
from bei_core.engines.provider import EngineProvider
from bei_core.engines.remote import RemoteEngines
from bei_core.errors import CheckpointError, ConfigError
from bei_core.storage.backends import BACKENDS, Backend, FileSystem, Options, is_store, store_schemes
from tests.docs.documents import ROOT
from tests.fakes import ENGINE_FILES, write_engine
from tests.stores import MODEL, files_of, put

ARTIFACT = "a" * 32


class Drawers(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """A file system in memory that shares no files with other MemoryFileSystems."""

    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the base class
    pseudo_dirs = [""]  # noqa: RUF012


@pytest.fixture
def cabinet() -> Iterator[type[Backend]]:
    """The one class, defined while the test runs."""
    before = list(BACKENDS)

    class Cabinet(Backend):
        name = "a cabinet"
        schemes = ("cabinet",)
        protocol = "cabinet"
        example = "cabinet://drawer/folder"
        requirement = "cabinetfs>=1"
        extra = "cabinet"
        credentials_form = '{"key": …}'

        def credentials(self, secret: Mapping[str, Any]) -> Options:
            return {"key": secret["key"]}

        def open(self, options: Options) -> FileSystem:
            if options != {"key": "sesame"}:
                raise PermissionError("locked")
            return Drawers()

    yield Cabinet
    BACKENDS[:] = before
    Drawers.store.clear()


@pytest.mark.usefixtures("cabinet")
def test_a_checkpoint_is_pulled_through_one_class(tmp_path: Path) -> None:
    put(Drawers(), "drawer/m", MODEL)
    checkpoint = resolve("cabinet://drawer/m", secret='{"key": "sesame"}', root=tmp_path)
    assert checkpoint.source == "cabinet://drawer/m"
    assert files_of(checkpoint) == set(MODEL)


@pytest.mark.usefixtures("cabinet")
def test_two_users_of_one_store_have_two_folders_in_the_cache(tmp_path: Path) -> None:
    for user in ("ann", "bob"):
        put(Drawers(), f"{user}@drawer/m", MODEL)
    found = [
        resolve(f"cabinet://{user}@drawer/m", secret='{"key": "sesame"}', root=tmp_path) for user in ("ann", "bob")
    ]
    assert [checkpoint.source for checkpoint in found] == ["cabinet://ann@drawer/m", "cabinet://bob@drawer/m"]
    assert found[0].folder != found[1].folder


@pytest.mark.usefixtures("cabinet")
def test_an_engine_is_pushed_and_pulled_through_one_class(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", ARTIFACT)
    remote = RemoteEngines("cabinet://drawer/engines", '{"key": "sesame"}')
    assert remote.push(tmp_path / "engine") == f"cabinet://drawer/engines/{ARTIFACT}"
    assert sorted(Drawers.store) == sorted(
        f"/drawer/engines/{ARTIFACT}/{name}" for name in (*ENGINE_FILES, "manifest.json")
    )
    remote.engine(ARTIFACT).pull(tmp_path / "pulled", artifact=ARTIFACT)
    assert verify(tmp_path / "pulled") == verify(tmp_path / "engine")


@pytest.mark.usefixtures("cabinet")
def test_errors_and_help_name_a_new_store(tmp_path: Path) -> None:
    assert is_store("cabinet://drawer/m")
    assert store_schemes().endswith(", cabinet://")
    for url, secret, said in (
        ("cabinet://drawer/m", None, 'no secret was given.*a cabinet takes {"key": …}'),
        ("cabinet://drawer/m", "{}", 'the secret has no key; a cabinet takes {"key": …}'),
        ("cabinet:///m", None, "names no bucket; write cabinet://drawer/folder"),
        ("ftp://host/m", None, "give a folder, a Hugging Face repository, s3://, gs://, azure://, cabinet://, or"),
    ):
        with pytest.raises(CheckpointError, match=said):
            resolve(url, secret=secret, root=tmp_path)
    settings = Settings.load({"model_id": "a/b", "engine_store": "/srv/engines", "cache_dir": tmp_path}, {})
    with pytest.raises(ConfigError, match=r"s3://bucket/folder, gs://bucket/folder, .*, cabinet://drawer/folder$"):
        EngineProvider(settings)


def test_the_table_of_sources_has_every_store() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for backend in BACKENDS:
        if backend.requirement:
            form = re.sub(r"\{.*?\}", r"`\g<0>`", backend.credentials_form)
            assert f"| `{backend.example}` | extra `{backend.extra}` | {form} |" in page
