"""The service curve of a running server: how long a batch takes, and what a request costs beside the engine.

More clients in a closed loop make larger batches. For each number of clients, the server's counters give the mean size
and the mean time of a batch. A fixed time per batch and a time per token are fitted to these. The time of a request in
the event loop is measured on `/tokenize`, which does everything that `/v1/embeddings` does, except for the engine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from bei_core.bench.measure import Options, run
from bei_core.bench.report import Report
from bei_core.bench.saved import Saved
from bei_core.errors import BeiError

CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)

_COUNTERS = (
    "bei_engine_busy_seconds_total",
    "te_batch_next_tokens_sum",
    "te_batch_next_tokens_count",
    "te_batch_next_size_sum",
)
_PROBE = 40  # requests of a short run first, from which the number of requests for `seconds` follows
_SPECIAL_TOKENS = 2  # of a text: [CLS] and [SEP]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of a closed loop with `clients` clients."""

    clients: int
    requests_per_s: float
    mean_ms: float  # latency
    batch_items: float  # mean inputs of a batch
    batch_tokens: float  # mean tokens of a batch
    batch_s: float  # mean time of a batch in the engine
    between_s: float  # mean time between two batches


class Calibration(Saved, frozen=True, kw_only=True):
    """The service curve of a server for simulations, and the measurements that it was fitted to."""

    called = "a calibration, which `bei bench --calibrate` writes"

    model: str
    compute_type: str  # device and precision, such as `cpu+f32`
    max_batch_tokens: int
    per_batch_s: float
    per_token_s: float
    between_s: float  # time of the engine thread between two batches, per input: the smallest of all levels
    accept_s: float  # time of the event loop until a request is in the queue
    reply_s: float  # time of the event loop for a reply
    overhead_s: float  # the rest of a request's latency on an idle server: network, client, threads
    tokens_per_word: float
    workload: str
    machine: dict[str, str | int]
    levels: list[Level]

    def batch_s(self, num_tokens: int) -> float:
        """Returns the time of a batch in the engine, in seconds."""
        return self.per_batch_s + self.per_token_s * num_tokens

    def max_requests_per_s(self, mean_tokens: float) -> float:
        """Returns the requests per second, one text each, of a replica that always runs full batches."""
        items = max(1.0, self.max_batch_tokens / mean_tokens)
        engine_s = self.per_batch_s / items + self.per_token_s * mean_tokens + self.between_s
        return 1 / max(engine_s, self.accept_s + self.reply_s)

    def num_tokens(self, num_words: int) -> int:
        """Returns the estimated number of tokens of a text, from the mean of the workload that was measured."""
        return round(num_words * self.tokens_per_word) + _SPECIAL_TOKENS

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
                f"  other        {self.between_s * 1e3:.3f} ms between batches, an input; {self.overhead_s * 1e3:.3f} "
                "ms around the server",
            ]
        )


def calibrate(options: Options, seconds: float = 5.0) -> Calibration:
    """Returns the calibration of a running server; each number of clients is measured for about `seconds`.

    Raises BeiError if the server does not answer or has no metrics of batches.
    """
    plain = msgspec.structs.replace(options, rate=0.0, batch=1, counters=_COUNTERS)
    measured = [(clients, _measure(plain, clients, seconds)) for clients in CLIENTS]
    beside = msgspec.structs.replace(plain, shape="tei", path="/tokenize")
    loop_s = 1 / _measure(beside, 16, seconds).requests_per_s
    levels = [_level(clients, report) for clients, report in measured]
    return _calibration(plain, levels, measured[-1][1], loop_s)


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


def _measure(options: Options, clients: int, seconds: float) -> Report:
    """Returns the report of a closed loop that takes about `seconds`. Raises BeiError if a request fails."""
    probe = _answered(
        run(msgspec.structs.replace(options, clients=clients, num_requests=_PROBE + clients, warmup=clients))
    )
    num_requests = max(_PROBE, clients, round(probe.requests_per_s * seconds))
    report = run(msgspec.structs.replace(options, clients=clients, num_requests=num_requests, warmup=clients))
    print(f"{clients} clients: {report.requests_per_s:,.1f} requests/s", file=sys.stderr)
    return _answered(report)


def _answered(report: Report) -> Report:
    if report.errors or report.latency_ms is None:
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(report.errors.items()))
        raise BeiError(f"the server failed requests of the calibration: {counts or 'all'}")
    return report


def _level(clients: int, report: Report) -> Level:
    """Returns the measurements in a report. Raises BeiError if the server has no metrics of batches."""
    counters, latency = report.counters, report.latency_ms
    num_batches = counters.get("te_batch_next_tokens_count", 0.0)
    if not num_batches or latency is None or "batch_tokens" not in report.server:
        raise BeiError("the server does not tell its batches; bei bench --calibrate needs a server of bei serve")
    busy_s = counters["bei_engine_busy_seconds_total"]
    return Level(
        clients=clients,
        requests_per_s=report.requests_per_s,
        mean_ms=latency.mean,
        batch_items=counters["te_batch_next_size_sum"] / num_batches,
        batch_tokens=counters["te_batch_next_tokens_sum"] / num_batches,
        batch_s=busy_s / num_batches,
        between_s=max(0.0, report.wall_s - busy_s) / num_batches,
    )


def _calibration(options: Options, levels: list[Level], full: Report, loop_s: float) -> Calibration:
    fixed, per_token = fit(levels)
    alone = levels[0]
    mean_tokens = full.workload.mean_tokens or 0.0
    return Calibration(
        model=str(full.server.get("model_id", "")),
        compute_type=str(full.server.get("compute_type", "")),
        max_batch_tokens=int(full.server["batch_tokens"]),
        per_batch_s=fixed,
        per_token_s=per_token,
        between_s=min(level.between_s / level.batch_items for level in levels),
        accept_s=loop_s / 2,
        reply_s=loop_s / 2,
        overhead_s=max(0.0, alone.mean_ms / 1e3 - alone.batch_s - loop_s),
        tokens_per_word=(mean_tokens - _SPECIAL_TOKENS) / full.workload.mean_words,
        workload=options.workload,
        machine=full.machine,
        levels=levels,
    )
