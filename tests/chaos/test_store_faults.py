"""Faults of a seed in the object store that replicas share: each start gets its right engine all the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bei_core.engines.manifest import verify
from bei_core.storage import transfer
from bei_core.storage.backends import Backend, FileSystem
from tests.hub import f32
from tests.unit.engines import test_provider
from tests.unit.engines.test_provider import World, only_engine, start

world = test_provider.world

NUM_STARTS = 30
FAULT = 0.15  # the part of the calls that fail, in each of their ways


class FaultyFiles:
    """A driver whose calls fail now and then, before or after a part of their work, or give and store wrong bytes."""

    def __init__(self, files: FileSystem, seen: Counter[str], random_: random.Random) -> None:
        self.files, self.seen, self.random = files, seen, random_

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the driver has
        found = getattr(self.files, name)
        if name not in {"find", "cat_file", "put_file", "pipe_file", "rm_file"}:
            return found
        return partial(self.call, name, found)

    def call(self, name: str, work: Callable[..., Any], path: str, *more: Any, **options: Any) -> Any:  # noqa: ANN401
        """The call, or one of its faults."""
        fault = self.random.choice(["before", "after", "cut", "flip"]) if self.random.random() < FAULT else ""
        self.seen[f"{name} {fault}"] += 1
        if fault == "before":
            raise ConnectionResetError("the store has closed the connection")
        result = work(path, *more, **options)
        if fault == "after":
            raise TimeoutError("the store has not answered")
        if name == "cat_file" and fault:
            return self.damaged(result, fault)
        if name in {"put_file", "pipe_file"} and fault:
            target = more[0] if name == "put_file" else path
            self.files.pipe_file(target, self.damaged(self.files.cat_file(target), fault))
        return result

    def damaged(self, content: bytes, fault: str) -> bytes:
        """The bytes without their second half, or with another byte."""
        if fault == "cut" or not content:
            return content[: len(content) // 2]
        place = self.random.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_start_gets_its_engine_whatever_the_store_does(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    seen, faults, open_files = Counter[str](), random.Random(f"{seed} store"), Backend.open
    monkeypatch.setattr(Backend, "open", lambda *arguments: FaultyFiles(open_files(*arguments), seen, faults))
    monkeypatch.setattr(transfer, "_PAUSES_S", (0.0, 0.0))
    for number in range(NUM_STARTS):
        commit = "main" if number % 3 else "next"  # two engines, so that the one is not taken for the other
        settings = world.elsewhere(engine_store=f"file://{tmp_path}/remote", revision=commit)
        assert start(settings).revision == world.commits[commit]
        folder = only_engine(settings)
        verify(folder)
        assert (folder / "model.bin").read_bytes() == f32(float(world.commits[commit][0]))[1].tobytes()
    assert 0 < len(world.builds) < NUM_STARTS, "some engines are built, and some are pulled"
    assert all(seen[f"cat_file {fault}"] for fault in ("before", "after", "cut", "flip")), seen
