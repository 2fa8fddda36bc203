"""Fixtures of the tests of engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openvino
import pytest

from bei_core.engines.openvino.compiled_cache import CompiledCache, Probe


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """An engine computes with the model that it compiled, and keeps it for no later start.

    A start that keeps it also runs a probe and writes it, which takes as long as compiling a tiny model.
    test_compiled_cache.py and test_engine.py test that.
    """

    def store(_: CompiledCache, compile_: Callable[[], openvino.CompiledModel], probe: Probe) -> openvino.CompiledModel:
        return compile_()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledCache, "store", store)
        yield
