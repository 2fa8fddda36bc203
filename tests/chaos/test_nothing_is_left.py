"""After requests of every end, no task, request, future or body is left in the server."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable

import httpx

from bei_core.serving.queue import Item
from bei_core.serving.runner import Ticket
from tests.e2e.server import request_bytes
from tests.fakes import SAFETY_S
from tests.unit.http import conftest
from tests.unit.http.overloaded import MakeServed, Served

make_served = conftest.make_served

NUM_REQUESTS = 150


def num_left() -> int:
    """The requests and inputs that something still refers to."""
    gc.collect()
    return sum(isinstance(one, (Ticket, Item)) for one in gc.get_objects())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, without another task. Raises AssertionError if it never does."""
    limit = time.monotonic() + SAFETY_S
    while not condition():
        assert time.monotonic() < limit, "what the test waits for never happened"
        await asyncio.sleep(0.05)


async def end_somehow(served: Served, random_: random.Random) -> int | None:
    """One request; its status, or None if its client leaves."""
    inputs = [[random_.randrange(5, 20)] * random_.randint(1, 60) for _ in range(random_.randint(1, 8))]  # 48 fit
    end = random_.choice(["answered", "late", "malformed", "leaves"])
    if end == "leaves":
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        whole = request_bytes("/embed", httpx.Request("POST", "http://a", json={"inputs": inputs}).content)
        writer.write(whole[: random_.randrange(1, len(whole) + 1)])
        await writer.drain()
        writer.close()
        return None
    headers = {"request-timeout-ms": "1"} if end == "late" else {}
    body = {"inputs": 7 if end == "malformed" else inputs, "truncate": random_.random() < 0.5}
    return (await served.client.post("/embed", json=body, headers=headers)).status_code


async def test_no_task_and_no_request_is_left_whatever_its_end(make_served: MakeServed) -> None:
    served = await make_served(max_queue_tokens=500)
    assert (await served.client.post("/embed", json={"inputs": [[5]]})).status_code == 200
    tasks, left = len(asyncio.all_tasks()), num_left()
    random_ = random.Random(1)
    served.engine.hold()
    ends = [asyncio.create_task(end_somehow(served, random_)) for _ in range(NUM_REQUESTS)]
    await until(lambda: any(end.done() and end.result() == 429 for end in ends))  # the queue is full
    assert num_left() > left
    served.engine.release()
    statuses = await asyncio.gather(*ends)
    assert {None, 200, 422, 429} <= set(statuses) <= {None, 200, 422, 429, 504}, set(statuses)
    ends.clear()
    await until(lambda: len(asyncio.all_tasks()) <= tasks and num_left() <= left)
    assert served.service._runner.num_items == 0
    assert served.service._num_requests == 0
