"""A command with an engine that ends its thread on the token id 666, hangs on 667, and ends its process on 668.

Its arguments are the command.

python -m tests.chaos.crashing bei serve --model-id ...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from bei_core.cli.main import main
from bei_core.engines import process
from bei_core.engines.openvino.engine import OpenVinoEngine

forward = OpenVinoEngine.forward


def faulty(engine: OpenVinoEngine, batch: Any) -> Any:  # noqa: ANN401
    """`forward`, unless the batch has one of the ids."""
    ids = set(batch.input_ids.tolist())
    if 666 in ids:
        raise SystemExit(0)
    if 667 in ids:
        time.sleep(3600)
    if 668 in ids:
        os.kill(os.getpid(), signal.SIGSEGV)
    return forward(engine, batch)


def inject() -> None:
    """Install the faults in this process."""
    OpenVinoEngine.forward = faulty  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    inject()
    in_child = "from tests.chaos import crashing; crashing.inject(); "
    vars(process)["PROGRAM"] = process.PROGRAM.replace("from bei_core", f"{in_child}from bei_core")
    sys.argv = sys.argv[1:]
    main()
