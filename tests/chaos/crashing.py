"""A command with an engine that ends its thread on the token id 666, and hangs on 667; its arguments are the command.

python -m tests.chaos.crashing bei serve --model-id ...
"""

from __future__ import annotations

import sys
import time
from typing import Any

from bei_core.cli.main import main
from bei_core.engines.openvino.engine import OpenVinoEngine

forward = OpenVinoEngine.forward


def faulty(engine: OpenVinoEngine, batch: Any) -> Any:  # noqa: ANN401
    """`forward`, unless the batch has one of the ids."""
    ids = set(batch.input_ids.tolist())
    if 666 in ids:
        raise SystemExit(0)
    if 667 in ids:
        time.sleep(3600)
    return forward(engine, batch)


if __name__ == "__main__":
    OpenVinoEngine.forward = faulty  # type: ignore[method-assign,assignment]
    sys.argv = sys.argv[1:]
    main()
