"""Large requests that precede the line of `Pending` do so for a limited time, whatever the expected times are."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_queue import BUDGET, Queue, put_request


@given(st.integers(1, 6), st.floats(0.01, 1.0), st.floats(0.0, 5.0), st.booleans())
def test_no_number_of_large_requests_starves_a_small_one(
    num_large: int, quantum_s: float, line_s: float, has_begun: bool
) -> None:
    queue = Queue()
    for _ in range(num_large):
        put_request(queue, *[128] * 400)
    if has_begun:
        queue.pending.take(BUDGET, queue.now, expected_s=lambda _: quantum_s)
    queue.now += line_s  # nothing ran for so long, so that the quanta may precede all that comes now
    (small,) = put_request(queue, 128)
    quanta = num_large + math.ceil(line_s / (2 * quantum_s)) + 1  # in the line, and with a rank before that of the item
    num_batches = 0
    while small not in queue.pending.take(BUDGET, queue.now, expected_s=lambda _: quantum_s).items:
        queue.now += quantum_s
        num_batches += 1
        assert num_batches <= quanta
