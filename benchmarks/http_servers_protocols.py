"""CPU time a request of two HTTP protocols in one process, without sockets: what the server's own Python costs.

    python -m benchmarks.http_servers_protocols         in the repository, with packages/ on PYTHONPATH

The same request is given to `data_received` again and again, the application of http_servers_apps.py answers it, and a
transport that throws everything away takes the reply. The runs alternate, and the least CPU time of each counts, so
that other work on the machine hardly shows. Needs uvicorn besides what bei_core needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from importlib import import_module as load
from typing import Any

from bei_core.config.settings import Settings
from bei_core.http.limits import BodyBudget
from bei_core.http.server.connection import Connection
from bei_core.http.server.pool import Pool
from benchmarks.http_servers import TEXT, post
from benchmarks.http_servers_apps import asgi

NUM_REQUESTS = 500
NUM_RUNS = 40


class Transport(asyncio.Transport):
    """Counts replies."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.replied = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Each protocol ends its reply with the body, which is more than its head."""
        if len(data) > 1000:
            self.replied.set()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """The whole reply."""
        self.replied.set()

    def is_closing(self) -> bool:
        """It stays open."""
        return False

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


def ours() -> asyncio.Protocol:
    """bei_core's."""
    app: Any = asgi
    settings = Settings(model_id="none")
    return Connection(Pool(app, settings, BodyBudget(settings.max_body_bytes_in_flight), 100))


def uvicorns() -> asyncio.Protocol:
    """The one that uvicorn has on httptools."""
    protocols, server = load("uvicorn.protocols.http.httptools_impl"), load("uvicorn.server")
    config = load("uvicorn").Config(asgi, access_log=False, log_level="warning", lifespan="off", ws="none")
    protocol: asyncio.Protocol = protocols.HttpToolsProtocol(config, server.ServerState(), {})
    return protocol


async def spend(make: Callable[[], asyncio.Protocol]) -> float:
    """Microseconds of CPU time a request."""
    protocol, transport, request = make(), Transport(), post(TEXT, "base64")
    protocol.connection_made(transport)
    start = time.process_time()
    for _ in range(NUM_REQUESTS):
        transport.replied.clear()
        protocol.data_received(request)
        await transport.replied.wait()
        await asyncio.sleep(0)
    return (time.process_time() - start) / NUM_REQUESTS * 1e6


def main() -> None:
    """Prints the least of many runs of each."""
    uvloop = load("uvloop")
    least = {"bei_core.http.server": 1e9, "uvicorn httptools": 1e9}
    for _ in range(NUM_RUNS):
        for name, make in zip(least, (ours, uvicorns), strict=True):
            least[name] = min(least[name], uvloop.run(spend(make)))
    for name, cost in least.items():
        print(f"{name:<24} {cost:.1f} us")


if __name__ == "__main__":
    main()
