"""`engine: auto` takes another engine if the preferred one cannot serve the model; on the world of test_provider."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines import provider
from bei_core.engines.base import Plan
from bei_core.engines.remote import RemoteEngines
from bei_core.errors import ConfigError, EngineUnavailableError, UnsupportedModelError
from bei_core.models.spec import ModelSpec
from tests.unit.engines import test_provider
from tests.unit.engines.test_provider import REPO, World, start

world, remote = test_provider.world, test_provider.remote


class Refusing:
    """A builder that builds an engine of `name` as the world does, or refuses every model."""

    def __init__(self, world: World, name: str, why: str | None) -> None:
        self.world, self.name, self.why, self.facts = world, name, why, world.facts

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        if self.why is not None:
            raise UnsupportedModelError(self.why)

    def plan(self, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
        self.check(spec, settings)
        made = dataclasses.replace(self.world.plan(checkpoint, spec, settings), engine=self.name)
        return dataclasses.replace(made, artifact={**made.artifact, "of": self.name})


@pytest.fixture
def two_engines(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Why each engine for GPUs refuses the model; `auto` prefers tensorrt_llm."""
    reasons: dict[str, str | None] = {"tensorrt_llm": None, "torch": None}
    monkeypatch.setattr(provider, "load_builder", lambda name: Refusing(world, name, reasons[name]))
    monkeypatch.setattr(provider, "candidates", lambda engine, **_: list(reasons) if engine == "auto" else [engine])
    return reasons


def test_auto_serves_a_model_with_the_first_engine_that_can(
    world: World, two_engines: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert start(world.settings(engine="auto")).engine == "tensorrt_llm"
    two_engines["tensorrt_llm"] = "it does not run ModernBertModel"
    other = world.elsewhere(engine="auto")
    assert start(other).engine == "torch"
    assert f"another engine is built for {REPO}: it does not run ModernBertModel" in caplog.text
    world.is_cut_off = True
    assert start(other).engine == "torch", "the later start needs no hub"
    two_engines["torch"] = "it does not either"
    world.is_cut_off = False
    with pytest.raises(UnsupportedModelError, match="it does not either"):
        start(world.elsewhere(engine="auto"))


NO_LAYERS = "the torch engine does not run StaticEmbedding"


def test_auto_serves_a_model_that_no_gpu_engine_serves_on_the_cpu_with_a_warning_at_each_start(
    world: World, two_engines: dict[str, str | None], remote: RemoteEngines, caplog: pytest.LogCaptureFixture
) -> None:
    two_engines |= {"tensorrt_llm": NO_LAYERS, "torch": NO_LAYERS, "openvino": None}
    caplog.set_level("INFO")
    settings = world.settings(engine="auto", engine_store=remote.store.url)
    assert start(settings).engine == "openvino"
    assert f"another engine is built for {REPO}: {NO_LAYERS}" in caplog.text
    world.is_cut_off = True
    for again in (settings, world.elsewhere(engine="auto", engine_store=remote.store.url)):
        caplog.clear()
        assert start(again).engine == "openvino", "the later start, and another replica, need no hub"
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            f"{REPO} runs on the CPU; set engine=openvino to silence this. No engine for the GPU serves it: {NO_LAYERS}"
        ]


def test_the_error_of_the_cpu_engine_also_says_why_the_engines_for_gpus_refuse_the_model(
    world: World, two_engines: dict[str, str | None]
) -> None:
    two_engines |= {"tensorrt_llm": NO_LAYERS, "torch": NO_LAYERS, "openvino": "the CPU engine has no such table"}
    with pytest.raises(UnsupportedModelError) as error:
        start(world.settings(engine="auto"))
    assert str(error.value) == f"{NO_LAYERS}; the CPU engine has no such table"


def test_an_error_of_the_settings_is_not_mixed_with_the_refusals_of_other_engines(
    world: World, two_engines: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_engines |= {"tensorrt_llm": NO_LAYERS, "torch": NO_LAYERS, "openvino": None}

    def fail(self: Refusing, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
        raise ConfigError("the calibration texts cannot be read")

    monkeypatch.setattr(Refusing, "plan", fail)
    with pytest.raises(ConfigError) as error:
        start(world.settings(engine="auto"))
    assert str(error.value) == "the calibration texts cannot be read"


@pytest.mark.parametrize("learning", ["tensorrt_llm", "torch"])
def test_an_engine_that_learns_a_model_serves_it_where_the_cpu_did(
    world: World, two_engines: dict[str, str | None], remote: RemoteEngines, learning: str
) -> None:
    """A version of BEI that can do more finds the refs of the version before it, on this machine and in the store."""
    two_engines |= {"tensorrt_llm": NO_LAYERS, "torch": NO_LAYERS, "openvino": None}
    settings = world.settings(engine="auto", engine_store=remote.store.url)
    assert start(settings).engine == "openvino"
    replica = world.elsewhere(engine="auto", engine_store=remote.store.url)
    two_engines[learning] = None
    assert start(settings).engine == learning
    world.is_cut_off = True
    assert start(settings).engine == learning, "the later start needs no hub"
    assert start(replica).engine == learning, "and neither does a replica"


def test_without_the_hub_the_cpu_serves_on_where_an_engine_has_learned_the_model(
    world: World, two_engines: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    two_engines |= {"tensorrt_llm": NO_LAYERS, "torch": NO_LAYERS, "openvino": None}
    settings = world.settings(engine="auto")
    assert start(settings).engine == "openvino"
    two_engines["torch"], world.is_cut_off = None, True
    assert start(settings).engine == "openvino"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"][-2:] == [
        f"another engine is preferred, but cannot be built: {REPO}: the hub cannot be reached",
        f"{REPO} runs on the CPU; set engine=openvino to silence this. The engine in the cache is for the CPU",
    ]
    world.is_cut_off = False
    assert start(settings).engine == "torch"


def test_a_fallback_in_the_store_does_not_keep_a_replica_on_the_cpu(
    world: World, two_engines: dict[str, str | None], remote: RemoteEngines
) -> None:
    two_engines |= {"tensorrt_llm": NO_LAYERS, "torch": NO_LAYERS, "openvino": None}
    assert start(world.settings(engine="auto", engine_store=remote.store.url)).engine == "openvino"
    two_engines["torch"] = None
    assert start(world.elsewhere(engine="auto", engine_store=remote.store.url)).engine == "torch"
    two_engines["torch"] = NO_LAYERS  # as in the version before, of which a replica may still run
    assert start(world.elsewhere(engine="auto", engine_store=remote.store.url)).engine == "openvino"


def test_an_engine_for_the_cpu_at_a_url_serves_as_it_is(
    world: World, two_engines: dict[str, str | None], remote: RemoteEngines, caplog: pytest.LogCaptureFixture
) -> None:
    two_engines["openvino"] = None
    made = start(world.settings(engine_store=remote.store.url)).artifact
    world.is_cut_off = True
    settings = world.elsewhere(engine="auto", model_id=f"{remote.store.url}/{made}")
    for _ in range(2):
        caplog.clear()
        assert start(settings).artifact == made
        (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert warning.endswith("silence this. The engine at this URL is for the CPU")


def test_auto_does_not_leave_the_gpu_for_settings_that_its_engines_refuse(
    world: World, two_engines: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what can be changed. A CPU that takes fp4 for 4-bit weights may be no choice for a large model."""
    two_engines["openvino"] = None

    def refuse(self: Refusing, spec: ModelSpec, settings: Settings) -> None:
        if self.name != "openvino":
            raise EngineUnavailableError("engines for GPUs are not built in fp4; use fp8")

    monkeypatch.setattr(Refusing, "check", refuse)
    with pytest.raises(EngineUnavailableError, match="not built in fp4; use fp8"):
        start(world.settings(engine="auto", quantization_type="fp4"))


def test_the_preferred_engine_serves_where_another_one_did_by_its_name(
    world: World, two_engines: dict[str, str | None], remote: RemoteEngines
) -> None:
    settings = world.settings(engine="torch", engine_store=remote.store.url)
    assert start(settings).engine == "torch"
    assert start(msgspec.structs.replace(settings, engine="auto")).engine == "tensorrt_llm"
    world.is_cut_off = True
    assert start(world.elsewhere(engine="auto", engine_store=remote.store.url)).engine == "tensorrt_llm"
