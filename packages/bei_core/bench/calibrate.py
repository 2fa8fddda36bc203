"""The service curve of a running server: how long a batch takes, and what a request costs beside the engine.

More clients in a closed loop make larger batches. For each number of clients, the server's counters give the mean size
and the mean time of a batch. A fixed time per batch and a time per token are fitted to these. The time of a request in
the event loop is measured on `/tokenize`, which does everything that `/v1/embeddings` does, except for the engine.

The speed of a machine can change while it is measured. So each number of clients is measured in several short turns,
which alternate with those of the others. The changes themselves are measured too: batches that are slower now and
faster then make requests wait longer than batches that always take the mean time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, harmonic_mean

import msgspec
import numpy as np

from bei_core.bench.measure import Options, run, split
from bei_core.bench.observe import BUSY_S, NUM_BATCHES, NUM_TOKENS, Moment, watch
from bei_core.bench.report import Report
from bei_core.bench.saved import Saved
from bei_core.errors import BeiError

SLOWDOWN_S = 0.1
WATCH_S = 2 * SLOWDOWN_S  # between two readings of the server's counters
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)

_NUM_ITEMS = "te_batch_next_size_sum"
_QUEUE_S, _INFERENCE_S = "te_request_queue_duration_sum", "te_request_inference_duration_sum"
_COUNTERS = (BUSY_S, NUM_TOKENS, NUM_BATCHES, _NUM_ITEMS, _QUEUE_S, _INFERENCE_S)
_PROBE = 120  # requests of the first turn, which warms the server up and tells how many requests take `seconds`
_TURNS = 5  # measured turns of each number of clients
_SPECIAL_TOKENS = 2  # of a text: [CLS] and [SEP]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of a closed loop with `clients` clients, in all its turns."""

    clients: int
    requests_per_s: float
    mean_ms: float  # latency
    batch_items: float  # mean inputs of a batch
    batch_tokens: float  # mean tokens of a batch
    batch_s: float  # mean time of a batch in the engine
    between_s: float  # mean time between two batches
    http_s: float = 0.0  # mean time of a request outside the queue and its batch


class Calibration(Saved, frozen=True, kw_only=True):
    """The service curve of a server for simulations, and the measurements that it was fitted to."""

    called = "a calibration, which `bei bench --calibrate` writes"

    model: str
    compute_type: str  # device and precision, such as `cpu+f32`
    max_batch_tokens: int
    per_batch_s: float
    per_token_s: float
    between_s: float  # time of the engine thread between two batches, per input of a batch
    between_batches_s: float = 0.0  # and for each batch
    accept_s: float  # time of the event loop until a request is in the queue
    reply_s: float  # time of the event loop for a reply
    overhead_s: float  # the rest of a request's latency: network, client, threads
    tokens_per_word: float
    workload: str
    machine: dict[str, str | int]
    levels: list[Level]
    slowdowns: tuple[float, ...] = ()  # factors of batch times, one every SLOWDOWN_S, over and over; empty: always 1
    turns: tuple[float, ...] = ()  # mean factor of batch times in each turn, which has all numbers of clients

    def batch_s(self, num_tokens: int, now: float = 0.0) -> float:
        """Returns the time of a batch in the engine that starts `now`, in seconds."""
        slowdown = self.slowdowns[int(now / SLOWDOWN_S) % len(self.slowdowns)] if self.slowdowns else 1.0
        return slowdown * (self.per_batch_s + self.per_token_s * num_tokens)

    def at_turn(self, turn: float) -> Calibration:
        """Returns the calibration of a machine on which each batch takes `turn` times as long."""
        return msgspec.structs.replace(self, per_batch_s=turn * self.per_batch_s, per_token_s=turn * self.per_token_s)

    def after_batch_s(self, num_items: int) -> float:
        """Returns the time of the engine thread after a batch of `num_items` inputs, in seconds."""
        return self.between_batches_s + self.between_s * num_items

    def max_requests_per_s(self, mean_tokens: float) -> float:
        """Returns the requests per second, one text each, of a replica that always runs full batches."""
        items = max(1.0, self.max_batch_tokens / mean_tokens)
        per_batch_s = self.per_batch_s + self.between_batches_s
        engine_s = per_batch_s / items + self.per_token_s * mean_tokens + self.between_s
        return 1 / max(engine_s, self.accept_s + self.reply_s)

    def num_tokens(self, num_words: int) -> int:
        """Returns the estimated number of tokens of a text, from the mean of the workload that was measured."""
        return round(num_words * self.tokens_per_word) + _SPECIAL_TOKENS

    def _spread(self) -> str:
        """Returns the range of `slowdowns`, without the highest and the lowest tenth."""
        low, high = np.percentile(self.slowdowns, [10, 90])
        return f"batches take {low:.2f} to {high:.2f} times these times, by the moment"

    @staticmethod
    def path_of(model: str) -> Path:
        """Returns the file of a model, in the current folder: calibration-NAME.json."""
        return Path(f"calibration-{model.rstrip('/').rpartition('/')[2]}.json")

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.model} ({self.compute_type})",
                f"  batch        {self.per_batch_s * 1e3:.3f} ms + {self.per_token_s * 1e6:.2f} us a token",
                f"  event loop   {self.accept_s * 1e3:.3f} ms a request, {self.reply_s * 1e3:.3f} ms a reply",
                f"  after batch  {self.between_batches_s * 1e3:.3f} ms + {self.between_s * 1e3:.3f} ms an input",
                f"  other        {self.overhead_s * 1e3:.3f} ms around the server",
                *([f"  speed        {self._spread()}"] if self.slowdowns else []),
                *([f"  turns        {min(self.turns):.2f} to {max(self.turns):.2f} times"] if self.turns else []),
            ]
        )


def calibrate(options: Options, seconds: float = 8.0) -> Calibration:
    """Returns the calibration of a running server; each number of clients is measured for about `seconds`.

    Raises BeiError if the server does not answer or has no metrics of batches.
    """
    plain = msgspec.structs.replace(options, rate=0.0, batch=1, counters=_COUNTERS)
    counts = {clients: _num_requests(plain, clients, seconds / _TURNS) for clients in CLIENTS}
    reports: dict[int, list[Report]] = {clients: [] for clients in CLIENTS}
    with watch(split(options.url), WATCH_S) as moments:
        for seed, clients in product(range(_TURNS), CLIENTS):
            turn = msgspec.structs.replace(plain, clients=clients, num_requests=counts[clients], seed=seed)
            reports[clients].append(_answered(turn))
    beside = msgspec.structs.replace(plain, shape="tei", path="/tokenize", clients=16)
    loop_s = 1 / _answered(msgspec.structs.replace(beside, num_requests=_num_requests(beside, 16, 1.0))).requests_per_s
    levels = [_level(clients, of_level) for clients, of_level in reports.items()]
    found = _calibration(plain, levels, reports[CLIENTS[-1]][-1], loop_s)
    return msgspec.structs.replace(
        found,
        slowdowns=_steps([factor for _, factor in speeds(moments, found)]),
        turns=tuple(_factor(turn, found) for turn in zip(*reports.values(), strict=True)),
    )


def speeds(moments: Sequence[Moment], calibration: Calibration) -> Iterator[tuple[float, float]]:
    """Yields the end of each interval in which batches ended, and by which factor they took longer than calibrated."""
    for before, after in pairwise(moments):
        expected_s = (after.num_batches - before.num_batches) * calibration.per_batch_s
        expected_s += (after.num_tokens - before.num_tokens) * calibration.per_token_s
        if expected_s > 0:
            yield after.at, (after.busy_s - before.busy_s) / expected_s


def _factor(reports: Sequence[Report], calibration: Calibration) -> float:
    """Returns by which factor the batches of some measurements took longer than calibrated."""
    busy_s, batches, tokens = (
        sum(each.counters[name] for each in reports) for name in (BUSY_S, NUM_BATCHES, NUM_TOKENS)
    )
    return busy_s / (batches * calibration.per_batch_s + tokens * calibration.per_token_s)


def fit(levels: Sequence[Level]) -> tuple[float, float]:
    """Returns the fixed time per batch and the time per token, in seconds, with the smallest relative errors.

    Both are at least 0.
    """
    tokens, times = np.array([[level.batch_tokens, level.batch_s] for level in levels]).T
    (fixed, per_token), *_ = np.linalg.lstsq(np.stack([1 / times, tokens / times], 1), np.ones(len(levels)), rcond=None)
    if fixed < 0:
        return 0.0, float(np.mean(times) / np.mean(tokens))
    if per_token < 0:
        return float(np.mean(times)), 0.0
    return float(fixed), float(per_token)


def fit_between(levels: Sequence[Level]) -> tuple[float, float]:
    """Returns the time between two batches: that of each batch, and that of each input, in seconds.

    An engine that waits for requests adds to the measured times. So the two are those of the highest line (by the sum
    over the levels) that is above none of the levels.
    """
    items, times = np.array([[level.batch_items, level.between_s] for level in levels]).T
    lines = [(float(times.min()), 0.0), (0.0, float((times / items).min()))]
    for one, other in product(range(len(levels)), repeat=2):
        if items[one] < items[other]:
            slope = (times[other] - times[one]) / (items[other] - items[one])
            lines.append((float(times[one] - slope * items[one]), float(slope)))
    below = [line for line in lines if min(line) >= 0 and np.all(line[0] + line[1] * items <= times + 1e-12)]
    return max(below, key=lambda line: line[0] * len(levels) + line[1] * items.sum())


def _steps(factors: Sequence[float]) -> tuple[float, ...]:
    """Returns the factors of intervals of WATCH_S as `slowdowns`, scaled so that they do not change the throughput."""
    factors = [factor for factor in factors if factor > 0]
    mean = harmonic_mean(factors) if factors else 1.0
    return tuple(float(step) for step in np.repeat(factors, round(WATCH_S / SLOWDOWN_S)) / mean)


def _num_requests(options: Options, clients: int, seconds: float) -> int:
    """Returns the number of requests that take about `seconds`, from a short turn."""
    probe = _answered(msgspec.structs.replace(options, clients=clients, num_requests=_PROBE + clients))
    print(f"{clients} clients: {probe.requests_per_s:,.1f} requests/s", file=sys.stderr)
    return max(_PROBE // _TURNS, clients, round(probe.requests_per_s * seconds))


def _answered(options: Options) -> Report:
    """Returns the report of a closed loop. Raises BeiError if a request fails."""
    report = run(msgspec.structs.replace(options, warmup=options.clients))
    if report.errors or report.latency_ms is None:
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(report.errors.items()))
        raise BeiError(f"the server failed requests of the calibration: {counts or 'all'}")
    return report


def _level(clients: int, reports: Sequence[Report]) -> Level:
    """Returns the measurements in the reports of a level. Raises BeiError if the server has no metrics of batches."""
    counters = {name: sum(report.counters.get(name, 0.0) for report in reports) for name in _COUNTERS}
    num_batches = counters[NUM_BATCHES]
    if not num_batches or "batch_tokens" not in reports[0].server:
        raise BeiError("the server does not tell its batches; bei bench --calibrate needs a server of bei serve")
    busy_s, wall_s = counters[BUSY_S], sum(report.wall_s for report in reports)
    num_ok, mean_ms = sum(report.num_ok for report in reports), fmean(_mean_ms(report) for report in reports)
    return Level(
        clients=clients,
        requests_per_s=num_ok / wall_s,
        mean_ms=mean_ms,
        batch_items=counters[_NUM_ITEMS] / num_batches,
        batch_tokens=counters[NUM_TOKENS] / num_batches,
        batch_s=busy_s / num_batches,
        between_s=max(0.0, wall_s - busy_s) / num_batches,
        http_s=mean_ms / 1e3 - (counters[_QUEUE_S] + counters[_INFERENCE_S]) / num_ok,
    )


def _mean_ms(report: Report) -> float:
    return report.latency_ms.mean if report.latency_ms else 0.0


def _overhead_s(levels: Sequence[Level], loop_s: float, between_batches_s: float, between_s: float) -> float:
    """Returns what is left of the time outside the queue and the batch: the least of the levels with several clients.

    The requests of a batch are read and answered one after the other. A single client sends nothing while the engine
    computes, which makes it faster. Many clients send at the same moment, as an open loop seldom does, and then wait
    for the event loop.
    """
    own = (loop_s * (1 + level.batch_items) / 2 + between_batches_s + between_s * level.batch_items for level in levels)
    left = [level.http_s - one for level, one in zip(levels, own, strict=True) if level.clients > 1]
    return max(0.0, min(left))


def _calibration(options: Options, levels: list[Level], full: Report, loop_s: float) -> Calibration:
    per_batch_s, per_token_s = fit(levels)
    between_batches_s, between_s = fit_between(levels)
    mean_tokens = full.workload.mean_tokens or 0.0
    return Calibration(
        model=str(full.server.get("model_id", "")),
        compute_type=str(full.server.get("compute_type", "")),
        max_batch_tokens=int(full.server["batch_tokens"]),
        per_batch_s=per_batch_s,
        per_token_s=per_token_s,
        between_s=between_s,
        between_batches_s=between_batches_s,
        accept_s=loop_s / 2,
        reply_s=loop_s / 2,
        overhead_s=_overhead_s(levels, loop_s, between_batches_s, between_s),
        tokens_per_word=(mean_tokens - _SPECIAL_TOKENS) / full.workload.mean_words,
        workload=options.workload,
        machine=full.machine,
        levels=levels,
    )
