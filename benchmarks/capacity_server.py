"""`bei serve` with an engine that sleeps as long as a batch should take, for capacity.py on a busy machine.

It takes the fixed time of a batch (ms), the time of a token (us) and `bei serve`'s flags.
"""

from __future__ import annotations

import sys
import time

from bei_core.cli.main import main
from bei_core.engines.batch import Batch
from bei_core.tasks import Rows
from benchmarks import truss_fake


class TimedEngine(truss_fake.InstantEngine):
    """Returns the rows of InstantEngine after `per_batch_s` and `per_token_s` for each token."""

    per_batch_s = 0.0
    per_token_s = 0.0

    def forward(self, batch: Batch) -> Rows:
        """f32[B, WIDTH]; see `Engine.forward`."""
        until = time.perf_counter() + self.per_batch_s + self.per_token_s * batch.num_tokens
        rows = super().forward(batch)
        time.sleep(max(0.0, until - time.perf_counter()))
        return rows


if __name__ == "__main__":
    TimedEngine.per_batch_s, TimedEngine.per_token_s = float(sys.argv[1]) / 1e3, float(sys.argv[2]) / 1e6
    truss_fake.InstantEngine = TimedEngine  # type: ignore[misc]  # the class that `install` opens
    truss_fake.install()
    sys.argv[1:] = sys.argv[3:]
    main()
