"""Plans how many replicas a load needs, by simulating one of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean

import msgspec

from bei_core.bench.calibrate import Calibration
from bei_core.capacity.autoscaler import Scaling
from bei_core.capacity.simulation import Result, simulate
from bei_core.capacity.traffic import poisson
from bei_core.errors import ConfigError

_NUM_REQUESTS = 30_000  # in one simulation
_MIN_S = 30.0  # the least simulated time, in seconds
_MAX_FACTOR = 20  # the most replicas to try, as a multiple of the fewest that can process the load


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest number of replicas that keeps the promised latency, with its latency and cost."""

    model: str
    rate: float  # requests per second, of all replicas
    mean_tokens: float  # of a request
    slo_p99_ms: float
    replicas: int
    utilisation: float  # share (0 to 1) of the time in which an engine computes
    p50_ms: float
    p99_ms: float
    p99_range_ms: tuple[float, float] | None  # with the fastest and the slowest turn of the calibration; None: one turn
    cost_per_billion_tokens: float | None  # None: no price was given

    def __str__(self) -> str:
        rows = [
            ("load", f"{self.rate:,.0f} requests/s of {self.mean_tokens:.1f} tokens"),
            ("replicas", f"{self.replicas:,}, {self.rate / self.replicas:,.1f} requests/s each"),
            ("utilisation", f"{self.utilisation:.0%} of the time an engine computes"),
            ("latency ms", f"p50 {self.p50_ms:.1f}  p99 {self.p99_ms:.1f} (at most {self.slo_p99_ms:g})"),
        ]
        if self.p99_range_ms is not None:
            low, high = self.p99_range_ms
            rows.append(("", f"p99 {low:.1f} to {high:.1f} with the fastest and the slowest turn of the calibration"))
        if self.cost_per_billion_tokens is not None:
            rows.append(("cost", f"{self.cost_per_billion_tokens:,.2f} per billion tokens"))
        return "\n".join([self.model, *(f"  {name:<12} {value}" for name, value in rows)])


def make_plan(
    calibration: Calibration,
    *,
    rate: float,
    lengths: Sequence[int],
    slo_p99_ms: float,
    price_per_hour: float | None = None,
) -> Plan:
    """Returns the plan for `rate` requests per second whose lengths (tokens) are drawn from `lengths`.

    `price_per_hour` is the price of one replica. The requests are divided among the replicas at random, so each replica
    gets a Poisson process. Raises ConfigError if even a replica that is nearly idle is too slow.
    """
    fewest = math.ceil(rate / calibration.max_requests_per_s(fmean(lengths)))
    counts = range(fewest, _MAX_FACTOR * fewest + 1)
    at = bisect_left(counts, True, key=lambda n: _one_of(n, calibration, rate, lengths).percentile_ms(99) <= slo_p99_ms)
    if at == len(counts):
        p99_ms = _one_of(counts[-1], calibration, rate, lengths).percentile_ms(99)
        raise ConfigError(f"a replica that is nearly idle has a p99 of {p99_ms:.1f} ms; `slo_p99_ms` must be above it")
    replicas = counts[at]
    result = _one_of(replicas, calibration, rate, lengths)
    tokens_per_hour = rate * fmean(lengths) * 3600
    return Plan(
        model=calibration.model,
        rate=rate,
        mean_tokens=fmean(lengths),
        slo_p99_ms=slo_p99_ms,
        replicas=replicas,
        utilisation=result.utilisation,
        p50_ms=result.percentile_ms(50),
        p99_ms=result.percentile_ms(99),
        p99_range_ms=_p99_range_ms(replicas, calibration, rate, lengths),
        cost_per_billion_tokens=None if price_per_hour is None else replicas * price_per_hour / tokens_per_hour * 1e9,
    )


def _p99_range_ms(
    num_replicas: int, calibration: Calibration, rate: float, lengths: Sequence[int]
) -> tuple[float, float] | None:
    """Returns the p99 with the fastest and with the slowest turn of a calibration; None if it tells of no turns."""
    if not calibration.turns:
        return None
    ends = (calibration.at_turn(turn) for turn in (min(calibration.turns), max(calibration.turns)))
    low, high = (_one_of(num_replicas, each, rate, lengths).percentile_ms(99) for each in ends)
    return low, high


def _one_of(num_replicas: int, calibration: Calibration, rate: float, lengths: Sequence[int]) -> Result:
    """Returns the result of simulating one of `num_replicas` replicas, with its share of the load."""
    seconds = max(_MIN_S, _NUM_REQUESTS * num_replicas / rate)
    requests = poisson([(seconds, rate / num_replicas)], lengths)
    return simulate(calibration, requests, scaling=Scaling(min_replica=1, max_replica=1))
