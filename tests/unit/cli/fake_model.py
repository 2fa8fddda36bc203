"""A model that commands open without a checkpoint or an engine."""

from __future__ import annotations

import msgspec
import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.models.modules import Module
from bei_core.models.spec import read_spec
from tests.fakes import FakeEngine
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"


def opens(monkeypatch: pytest.MonkeyPatch, *modules: Module) -> FakeEngine:
    """Make every model open with this engine; `modules` decide its kind, by default an embedding model."""
    engine = FakeEngine(max_seq_len=48)
    spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
    if modules:
        spec = msgspec.structs.replace(spec, modules=modules)
    made = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    opened = Opened(engine, spec, FOLDER / "tokenizer.json", made)
    for module in ("serving.service", "jobs.run"):
        monkeypatch.setattr(f"bei_core.{module}.open_engine", lambda settings, **_: opened)
    return engine
