"""A model that Ray drops is closed once, and not before its requests have ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.serve.multiplex import _ModelMultiplexWrapper

from bei_core.config.settings import Settings
from bei_core.serve_ray import replica
from bei_core.serve_ray.asgi import Reply
from bei_core.serve_ray.replica import LoadedModel
from bei_core.serving.service import Service


class CountingService:
    """Counts how often it is closed."""

    num_closed = 0

    def close(self) -> None:
        """As `Service.close`."""
        self.num_closed += 1


async def test_a_model_that_ray_drops_is_closed_when_its_requests_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    service, asked, may_answer = CountingService(), asyncio.Event(), asyncio.Event()

    async def answer(*_: object) -> None:
        asked.set()
        await may_answer.wait()

    monkeypatch.setattr(Service, "open_all", lambda *_: [service])
    monkeypatch.setattr(replica, "make_application", lambda *_: (None, answer))
    unused: Any = None
    ray = MagicMock(models=OrderedDict(name=LoadedModel(Settings(model_id="m"), unused, unused)))
    request = asyncio.ensure_future(Reply(ray.models["name"])(unused, unused, unused))
    await asked.wait()
    await _ModelMultiplexWrapper.unload_model_lru(ray)
    assert (len(ray.models), service.num_closed) == (0, 0)
    may_answer.set()
    await request
    del request
    assert service.num_closed == 1
