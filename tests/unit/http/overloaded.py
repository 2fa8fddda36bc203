"""Servers over fake engines that a test keeps busy, for tests of overload."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import httpx

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.http.app import App, make_app
from bei_core.http.limits import BodyBudget
from bei_core.http.server.arrivals import listen
from bei_core.http.server.pool import Pool
from bei_core.models.spec import read_spec
from bei_core.serving.queue import ServiceRate
from bei_core.serving.service import Service
from tests.fakes import SAFETY_S, FakeEngine, entered
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"


class Served(NamedTuple):
    """An application on a port, with a client."""

    app: App
    service: Service
    engine: FakeEngine
    client: httpx.AsyncClient
    pool: Pool
    port: int


MakeServed = Callable[..., Awaitable[Served]]


@asynccontextmanager
async def listening(app: App, settings: Settings) -> AsyncIterator[tuple[Pool, int]]:
    """The application on a port of its own, as `bei serve` has it."""
    pool = Pool(app, settings, BodyBudget(settings.max_body_bytes_in_flight), 100, app.refused_early)
    sock = socket.create_server(("127.0.0.1", 0))
    server = await listen(pool, sock)
    try:
        yield pool, sock.getsockname()[1]
    finally:
        server.close()
        await pool.drain(0.0, 0.0)


@asynccontextmanager
async def servers() -> AsyncIterator[MakeServed]:
    """A function that starts servers over fake engines, which are closed at the end of the block."""
    async with AsyncExitStack() as stack:

        async def make(**flags: object) -> Served:
            engine = FakeEngine(max_seq_len=48)
            spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
            manifest = Manifest(
                engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32
            )
            opened = Opened(engine, spec, FOLDER / "tokenizer.json", manifest)
            settings = Settings.load({"model_id": "owner/name", **flags}, {})
            service = Service(opened, settings)
            service.start()
            stack.callback(service.close, SAFETY_S)
            stack.callback(engine.release)
            while engine.entered.acquire(blocking=False):
                pass
            app, _ = make_app(service)
            pool, port = await stack.enter_async_context(listening(app, settings))
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SAFETY_S)
            return Served(app, service, engine, await stack.enter_async_context(client), pool, port)

        yield make


async def occupied(served: Served) -> asyncio.Task[httpx.Response]:
    """A request that keeps the engine busy until it is released."""
    served.engine.hold()
    task = asyncio.create_task(served.client.post("/embed", json={"inputs": [[9]]}))
    await entered(served.engine)
    return task


async def lined_up(served: Served, *lengths: int) -> tuple[asyncio.Task[httpx.Response], ...]:
    """The request of `occupied`, and requests of so many tokens that wait in the line behind it."""
    first = await occupied(served)
    waiting = [asyncio.create_task(served.client.post("/embed", json={"inputs": [[5] * each]})) for each in lengths]
    while served.service._runner.num_items < len(lengths):
        await asyncio.sleep(0.001)
    return first, *waiting


def set_rate(served: Served, num_tokens: int, seconds: float) -> None:
    """Lets the server expect that a batch of `num_tokens` takes so many seconds."""
    served.service._runner.admission.rate = ServiceRate()
    served.service._runner.admission.rate.add(num_tokens, seconds)


async def assert_it_accepts_again(served: Served, first: asyncio.Task[httpx.Response]) -> None:
    """Lets the engine go on: the first request and a new one get their answers."""
    served.engine.release()
    assert (await first).status_code == 200
    assert (await served.client.post("/embed", json={"inputs": [[5]]})).status_code == 200
