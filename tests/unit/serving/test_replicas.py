"""The batches of a server whose engine has copies of the model, such as one on each GPU."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from bei_core.config.settings import Settings
from bei_core.serving.service import Service
from tests.fakes import SAFETY_S, FakeEngine, at_rest, ended, entered
from tests.unit.serving.test_service import embed, opened


async def test_max_batch_tokens_is_that_of_each_copy_of_the_model() -> None:
    engine = FakeEngine(max_seq_len=48)
    engine.info = replace(engine.info, batch_tokens=2 * 48, num_replicas=2)
    service = Service(opened(engine, None), Settings.load({"max_batch_tokens": 48}, {}))
    service.start()
    engine.batches.clear()
    while engine.entered.acquire(blocking=False):
        pass
    with engine.held():
        first = asyncio.create_task(service.run(embed("first")))
        await entered(engine)
        others = asyncio.create_task(service.run(embed(*([number, *[7] * 11] for number in range(20, 32)))))
        await at_rest()
    await ended(first, others)
    assert [sum(map(len, batch)) for batch in engine.batches[1:]] == [96, 48]
    assert service.batch_tokens == 96
    service.close(SAFETY_S)
