"""The tokenizer in an engine folder: made of all files of the checkpoint, and part of the engine's address."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from bei_core.checkpoint import resolve
from bei_core.engines.build import plan_build
from bei_core.models.spec import read_spec
from tests.hub import write
from tests.unit.engines.test_provider import World, checkpoint, world

__all__ = ["world"]


def test_an_engine_has_the_tokenizer_of_all_files_and_its_digest_in_the_address(world: World, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    found = dataclasses.replace(resolve(str(folder)), revision="1" * 40)  # another tokenizer, the same commit
    spec = read_spec(found)
    plain, _ = plan_build(world, found, spec, world.settings())
    write(folder, {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "bos_token": "maybe"}})
    changed, fill = plan_build(world, found, spec, world.settings())
    assert changed.artifact != plain.artifact
    (tmp_path / "engine").mkdir()
    fill(tmp_path / "engine")
    written = json.loads((tmp_path / "engine" / "tokenizer.json").read_text())
    assert [token["content"] for token in written["added_tokens"]] == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "maybe",
        "[MASK]",
    ]
    assert written["post_processor"]["type"] == "TemplateProcessing"
