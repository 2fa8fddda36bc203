"""The engine provider: local lookup, remote lookup, build; with a builder and a loader that need no runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.config.settings import Settings
from bei_core.engines import build as build_module
from bei_core.engines import provider
from bei_core.engines import start as starting
from bei_core.engines.base import Plan
from bei_core.engines.cache import EngineCache
from bei_core.engines.manifest import MANIFEST, Manifest, is_engine, read_manifest, seal, verify
from bei_core.engines.open import Opened, build_engine, open_engine
from bei_core.engines.remote import RemoteEngines
from bei_core.errors import CheckpointError, ConfigError, EngineCorruptError, EngineUnavailableError
from bei_core.models.spec import ModelSpec
from bei_core.storage.objects import open_store
from tests.fakes import FakeEngine
from tests.hub import TOKENIZER, f32, pack, write

REPO = "owner/name"
CONFIG = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 64, "pad_token_id": 0}


def checkpoint(folder: Path, weight: float = 1.0, **config: object) -> Path:
    files = {"config.json": CONFIG | config, "tokenizer.json": TOKENIZER, "model.safetensors": pack({"a": f32(weight)})}
    return write(folder, files)


class World:
    """A hub with one repository, a builder and a loader, and records of their calls."""

    VERSION = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits = {"main": "1" * 40, "v1": "1" * 40, "next": "2" * 40}
        self.asked: list[str] = []  # revisions that the hub was asked for
        self.is_cut_off = False
        self.builds: list[str] = []  # sources that were built
        self.dtypes: list[str] = []  # of the engines loaded
        self.engines: list[FakeEngine] = []
        self.fails: Exception | None = None

    def facts(self, settings: Settings) -> dict[str, object]:
        return {"graph": self.VERSION}

    def settings(self, **changed: Any) -> Settings:  # noqa: ANN401 - as Settings takes them
        return Settings(**{"model_id": REPO, "engine": "openvino", "cache_dir": self.folder / "cache", **changed})

    def elsewhere(self, **changed: Any) -> Settings:  # noqa: ANN401 - the settings of another machine
        return self.settings(cache_dir=self.folder / uuid4().hex, **changed)

    def resolve(self, model_id: str, revision: str | None = None, **_: object) -> Checkpoint:
        if Path(model_id).is_dir():
            return resolve(model_id)
        self.asked.append(revision or "main")
        if self.is_cut_off:
            raise CheckpointError(f"{model_id}: the hub cannot be reached")
        found = self.commits[revision or "main"]
        folder = checkpoint(self.folder / "hub" / found, weight=float(found[0]))
        return dataclasses.replace(resolve(str(folder)), source=model_id, revision=found)

    def check(self, spec: ModelSpec, settings: Settings) -> None: ...

    def plan(self, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
        def fill(folder: Path) -> None:
            self.builds.append(checkpoint.source)
            (folder / "model.bin").write_bytes(checkpoint.tensors().f32("a").tobytes())
            if self.fails is not None:
                raise self.fails

        return Plan(engine="openvino", precision="f32", artifact={"graph": self.VERSION}, fill=fill)

    def load(self, folder: Path, spec: ModelSpec, manifest: Manifest, *, dtype: str, **_: object) -> FakeEngine:
        self.dtypes.append(dtype)
        self.engines.append(FakeEngine())
        if (folder / "model.bin").read_bytes() == b"bad!":
            raise ValueError("the runtime says nothing of use")
        return self.engines[-1]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(provider, "load_builder", lambda name: made)
    monkeypatch.setattr(starting, "load_loader", lambda name: made.load)
    monkeypatch.setattr("bei_core.checkpoint.resolve", made.resolve)
    return made


@pytest.fixture
def remote(tmp_path: Path) -> RemoteEngines:
    """The URL of an object store in a folder."""
    return RemoteEngines(f"file://{tmp_path}/remote")


def start(settings: Settings) -> Manifest:
    """The manifest of the engine that a server of these settings would run, and its end."""
    opened = open_engine(settings)
    opened.close()
    return opened.manifest


def damage(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"bad!")


def only_engine(settings: Settings) -> Path:
    (found,) = [path for path in (settings.cache_dir / "engines").glob("[!.]*") if is_engine(path)]
    return found


def test_the_second_start_asks_no_hub_and_builds_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = start(world.settings())
    assert (world.asked, world.builds) == (["main"], [REPO])
    world.is_cut_off = True
    assert start(world.settings()) == first
    assert (world.asked, world.builds) == (["main"], [REPO])
    said = [message.split(" ")[:2] for message in caplog.messages if message.startswith("engine ")]
    assert said == [["engine", "built"], ["engine", "loaded"], ["engine", "loaded"]]


def test_a_moved_branch_is_resolved_again_with_refresh(world: World) -> None:
    start(world.settings())
    world.commits["main"] = "2" * 40
    assert start(world.settings()).revision == "1" * 40
    assert start(world.settings(refresh=True)).revision == "2" * 40
    assert start(world.settings()).revision == "2" * 40, "the later answer stands"
    assert world.asked == ["main", "main"]


def test_another_revision_is_another_request(world: World) -> None:
    start(world.settings())
    assert start(world.settings(revision="next")).revision == "2" * 40
    start(world.settings(revision="v1"))
    assert world.asked == ["main", "next", "v1"]
    assert len(world.builds) == 2, "two names of one commit are one engine"


@pytest.mark.parametrize("changed", [{"pooling": "cls"}, {"pooling": "max"}])
def test_what_decides_the_rows_is_part_of_the_request(world: World, changed: dict[str, str]) -> None:
    first = start(world.settings(pooling="mean"))
    assert start(world.settings(**changed)).artifact != first.artifact
    assert len(world.asked) == len(world.builds) == 2


def test_an_engine_of_an_older_builder_is_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    start(world.settings())
    monkeypatch.setattr(world, "VERSION", 2, raising=False)
    start(world.settings())
    assert len(world.asked) == len(world.builds) == 2


def test_a_local_folder_is_read_at_each_start(world: World, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    first = start(world.settings(model_id=str(folder)))
    assert start(world.settings(model_id=str(folder))) == first
    checkpoint(folder, weight=2.0)
    assert start(world.settings(model_id=str(folder))).revision != first.revision
    assert len(world.builds) == 2


def test_of_a_local_folder_with_known_content_the_tokenizer_is_not_made_again_and_its_own_name_is_logged(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.chdir(checkpoint(tmp_path / "first" / "model").parent)
    first = start(world.settings(model_id="model"))
    assert start(world.settings(model_id="model", refresh=True)) == first
    monkeypatch.setattr("bei_core.engines.provider.plan_model", lambda *given: pytest.fail("the folder is read again"))
    monkeypatch.chdir(checkpoint(tmp_path / "second" / "model").parent)
    assert start(world.settings(model_id="model")) == first
    assert "found the engine of model at " in caplog.text


def test_a_folder_that_has_gone_does_not_stand_for_a_repository_of_its_name(
    world: World, tmp_path: Path, remote: RemoteEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    checkpoint(Path(REPO), weight=7.0)
    ours = start(world.settings(engine_store=remote.store.url))
    monkeypatch.chdir(tmp_path)
    theirs = start(world.settings(engine_store=remote.store.url))
    assert (theirs.revision, world.asked) == ("1" * 40, ["main"])
    assert theirs.artifact != ours.artifact


def test_the_hub_out_of_reach_is_an_error_where_nothing_is_known(world: World) -> None:
    world.is_cut_off = True
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        start(world.settings())


def test_no_model_and_no_store_of_that_form_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="pass --model-id"):
        start(world.settings(model_id=None))
    with pytest.raises(ConfigError, match=r"engine_store is '/srv/engines': expected the URL .* file:///folder"):
        start(world.settings(engine_store="/srv/engines"))


# --- The dtype, and the name


def test_an_engine_computes_in_the_dtype_of_each_start(world: World) -> None:
    for dtype in ("float32", "auto", "bfloat16"):
        start(world.settings(dtype=dtype))
    assert world.dtypes == ["float32", "auto", "bfloat16"]
    assert len(world.builds) == 1


def test_a_folder_computes_in_the_dtype_of_its_build_by_default(world: World, tmp_path: Path) -> None:
    build_engine(world.settings(dtype="float32"), tmp_path / "engine")
    for dtype in ("auto", "bfloat16", "float32"):
        start(world.settings(model_id=str(tmp_path / "engine"), dtype=dtype))
    assert world.dtypes == ["float32", "bfloat16", "float32"]
    for changed, said in (
        ({"dtype": "int8"}, "has weights in f32; build it again for int8"),
        ({"engine": "tensorrt_llm"}, "is built for openvino, not for tensorrt_llm"),
        ({"pooling": "cls"}, "is built with another pooling; build it again for cls"),
    ):
        with pytest.raises(ConfigError, match=said):
            start(world.settings(**{"model_id": str(tmp_path / "engine"), **changed}))


def test_the_name_is_the_requested_model_id(world: World, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine", weight=1.0)
    copy = checkpoint(tmp_path / "copy", weight=1.0)
    assert start(world.settings(model_id=str(folder))).source == str(folder)
    assert start(world.settings(model_id=str(copy))).source == str(copy)
    assert len(world.builds) == 1
    build_engine(world.settings(), tmp_path / "engine")
    assert start(world.settings(model_id=str(tmp_path / "engine"))).source == REPO


# --- The object store


def test_a_replica_pulls_the_engine_that_another_has_pushed(world: World, remote: RemoteEngines) -> None:
    first = start(world.settings(engine_store=remote.store.url))
    assert remote.engine(first.artifact).manifest() is not None
    world.is_cut_off = True
    other = world.elsewhere(engine_store=remote.store.url)
    assert start(other) == first
    assert start(msgspec.structs.replace(other, engine_store=None)) == first, "and then needs no store"
    assert (len(world.asked), len(world.builds)) == (1, 1)


def test_an_engine_that_is_shared_is_pulled_before_one_is_built(world: World, remote: RemoteEngines) -> None:
    start(world.settings(engine_store=remote.store.url))
    start(world.elsewhere(engine_store=remote.store.url, revision="v1"))
    assert (world.asked, len(world.builds)) == (["main", "v1"], 1)


@pytest.mark.parametrize("name", ["model.bin", MANIFEST])
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_damaged_one_is_built_here_and_shared_again(
    world: World, remote: RemoteEngines, tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = start(world.settings(engine_store=remote.store.url))
    files, path = open_store(f"{remote.engine(made.artifact).url}/{name}")
    files.rm_file(path) if how == "missing" else files.pipe_file(path, b"bad!")
    assert start(world.elsewhere(engine_store=remote.store.url)) == made
    assert len(world.builds) == 2
    assert (name if how == "damaged" or name != MANIFEST else "is not an engine") in caplog.text
    assert start(world.elsewhere(engine_store=remote.store.url)) == made
    assert len(world.builds) == 2, "the store is whole again"
    remote.engine(made.artifact).pull(tmp_path / "pulled")


def test_a_store_out_of_reach_only_warns(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "remote").write_text("a file, where the store's folder should be")
    start(world.settings(engine_store=f"file://{tmp_path}/remote"))
    assert "the engine cannot be shared with other replicas: " in caplog.text
    assert len(world.builds) == 1


def test_a_model_may_be_the_url_of_an_engine(world: World, remote: RemoteEngines) -> None:
    made = start(world.settings())
    url = remote.push(only_engine(world.settings()))
    world.is_cut_off = True
    other = world.elsewhere(model_id=url)
    assert start(other) == msgspec.structs.replace(made, source=url)
    files, path = open_store(remote.store.url)
    files.rm(path, recursive=True)
    assert start(other).artifact == made.artifact, "what is here needs the store no more"
    assert len(world.builds) == 1
    with pytest.raises(CheckpointError):
        start(world.elsewhere(model_id=url))


# --- Damage here


def test_a_damaged_engine_is_quarantined_and_built_once_more(world: World, caplog: pytest.LogCaptureFixture) -> None:
    made = start(world.settings())
    damage(only_engine(world.settings()))
    assert start(world.settings()) == made
    verify(only_engine(world.settings()))
    assert len(world.builds) == 2
    (said,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("engine corrupt: ")
    assert "model.bin" in said


def test_an_engine_that_is_damaged_each_time_is_an_error_in_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seal_and_damage(folder: Path, manifest: Manifest) -> None:
        seal(folder, manifest)
        damage(folder)

    monkeypatch.setattr(build_module, "seal", seal_and_damage)
    with pytest.raises(EngineCorruptError, match=r"model\.bin does not have the digest"):
        start(world.settings())
    assert len(world.builds) == 2


def test_a_damaged_engine_never_answers(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_engine(world.settings(), tmp_path / "engine")
    (tmp_path / "engine" / "model.bin").write_bytes(b"abcd")  # which the runtime takes
    with pytest.raises(EngineCorruptError, match=r"model\.bin"):
        start(world.settings(model_id=str(tmp_path / "engine")))
    assert [engine.is_closed for engine in world.engines] == [True]


def test_an_error_that_is_no_damage_does_not_quarantine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> FakeEngine:
        raise EngineUnavailableError("this processor does not compute so")

    start(world.settings())
    monkeypatch.setattr(starting, "load_loader", lambda name: refuse)
    with pytest.raises(EngineUnavailableError, match="this processor"):
        start(world.settings())
    assert len(world.builds) == 1
    verify(only_engine(world.settings()))


def test_a_build_that_fails_is_tried_again_at_the_next_start(world: World) -> None:
    world.fails = MemoryError("no memory")
    with pytest.raises(MemoryError):
        start(world.settings())
    assert not list((world.settings().cache_dir / "engines").glob("[!.]*"))
    world.fails = None
    start(world.settings())
    assert len(world.builds) == 2


# --- Folders that are built on purpose


def test_an_engine_is_built_into_a_new_or_empty_folder(world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "deep/er"):
        assert build_engine(world.settings(), tmp_path / name) == tmp_path / name
        assert read_manifest(tmp_path / name).source == REPO
    assert not world.settings().cache_dir.exists()
    assert build_engine(world.settings()).parent == world.settings().cache_dir / "engines"


def test_the_same_engine_stays_and_nothing_else_is_replaced(world: World, tmp_path: Path) -> None:
    build_engine(world.settings(), tmp_path / "engine")
    build_engine(world.settings(), tmp_path / "engine")
    assert len(world.builds) == 1
    with pytest.raises(ConfigError, match="holds another engine; name another folder"):
        build_engine(world.settings(revision="next"), tmp_path / "engine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("the only copy")
    for target in (tmp_path / "notes", tmp_path / "notes" / "thesis.txt"):
        with pytest.raises(ConfigError, match="exists and is not empty; name a new folder"):
            build_engine(world.settings(), target)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "the only copy"
    assert len(world.builds) == 1


def test_closing_lets_the_engine_go(world: World) -> None:
    opened: Opened = open_engine(world.settings())
    store = EngineCache.of(world.settings())
    store.local = True
    assert [entry.in_use for entry in store.entries()] == [True]
    opened.close()
    assert [entry.in_use for entry in store.entries()] == [False]
    assert world.engines[0].is_closed


def test_a_size_is_a_cap_on_the_store(world: World) -> None:
    assert EngineCache.of(world.settings(cache_size_gb=1.5)).max_bytes == 1_500_000_000
    start(world.settings())
    start(world.settings(revision="next", cache_size_gb=1e-6))
    assert read_manifest(only_engine(world.settings())).revision == "2" * 40
