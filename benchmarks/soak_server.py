"""`bei serve` that writes what it has in memory on SIGUSR1: asyncio's tasks and futures, requests and inputs.

python -m benchmarks.soak_server serve --model-id ...
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections import Counter

from bei_core.cli.main import main
from bei_core.serving.queue import Item
from bei_core.serving.runner import Ticket

KINDS = (asyncio.Future, Ticket, Item)  # a task is a future
HEAD = "in memory:"


def held() -> Counter[str]:
    """The number of objects that something still refers to, by type."""
    gc.collect()
    return Counter(type(found).__name__ for found in gc.get_objects() if isinstance(found, KINDS))


def write_held(*_: object) -> None:
    """Writes a line such as `in memory: Future=1 Task=2`."""
    found = " ".join(f"{name}={count}" for name, count in sorted(held().items()))
    print(f"{HEAD} {found}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, write_held)
    main()
