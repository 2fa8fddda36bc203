"""Simulates a cluster (with SimPy): routing, cold starts, autoscaling and lost replicas."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from bei_core.bench.calibrate import Calibration
from bei_core.capacity.autoscaler import SAMPLE_S, Autoscaler, Scaling
from bei_core.capacity.replica import Replica, Request

_PHASE_S = 7.3  # by which the changes of speed of each replica are later than those of the replica before


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of replicas at a moment. The router sends their requests to the others."""

    at: float  # seconds
    num_replicas: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of the cluster at one moment."""

    at: float  # seconds
    in_flight: int  # requests that have arrived and are not answered
    num_ready: int  # replicas
    num_replicas: int  # including those that are starting


@dataclass(slots=True)
class Result:
    """The result of a simulation."""

    arrived: list[float] = field(default_factory=list)  # of each answered request, in seconds
    latency_s: list[float] = field(default_factory=list)  # of each answered request
    num_tokens: int = 0  # of the answered requests
    num_refused: int = 0  # answered with 429
    num_retried: int = 0  # requests sent again because their replica was lost
    busy_s: float = 0.0  # of all engines
    replica_s: float = 0.0  # sum of the replicas' lifetimes, their start included
    samples: list[Sample] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latency, in ms; infinity if no request was answered."""
        return float(np.percentile(self.latency_s, percent)) * 1e3 if self.latency_s else float("inf")

    @property
    def utilisation(self) -> float:
        """The share (0 to 1) of the replicas' time in which their engines computed."""
        return self.busy_s / self.replica_s


class Cluster:
    """Replicas behind a router, which sends a request to the less loaded of two random replicas."""

    def __init__(
        self, calibration: Calibration, scaling: Scaling, *, cold_start_s: float, max_wait_s: float, seed: int
    ) -> None:
        self.result = Result()
        self.env = simpy.Environment()
        self._calibration = calibration
        self._scaling = scaling
        self._cold_start_s = cold_start_s
        self._max_wait_s = max_wait_s
        self._random = random.Random(seed)  # noqa: S311, not for cryptography
        self._all: list[Replica] = []
        self._ready: list[Replica] = []
        self._num_starting = 0
        self._in_flight = 0
        self._settled = self.env.event()
        self._waiting: deque[Request] = deque()  # requests that wait until there is a replica
        for _ in range(scaling.min_replica):
            self._add(self.env.now)

    def serve(self, requests: Iterable[tuple[float, int]]) -> Generator[Any, Any, None]:
        """The process of the arrivals, pairs (seconds, tokens). It ends when all requests are answered or refused."""
        for at, num_tokens in requests:
            if at > self.env.now:
                yield self.env.timeout(at - self.env.now)
            self._in_flight += 1
            self._route(Request(at, num_tokens))
        while self._in_flight:
            self._settled = self.env.event()
            yield self._settled

    def autoscale(self) -> Generator[Any, Any, None]:
        """The process of the autoscaler."""
        autoscaler, next_at = Autoscaler(self._scaling), self._scaling.decide_every_s
        while True:
            yield self.env.timeout(SAMPLE_S)
            num_replicas = len(self._ready) + self._num_starting
            self.result.samples.append(Sample(self.env.now, self._in_flight, len(self._ready), num_replicas))
            autoscaler.observe(self._in_flight)
            if self.env.now >= next_at:
                next_at += self._scaling.decide_every_s
                self._scale(autoscaler.decide(self.env.now, num_replicas) - num_replicas)

    def lose(self, loss: Loss) -> Generator[Any, Any, None]:
        """The process of a loss: random replicas stop at once, and new ones start in their place."""
        yield self.env.timeout(loss.at)
        for _ in range(min(loss.num_replicas, len(self._ready))):
            lost = self._ready.pop(self._random.randrange(len(self._ready)))
            self.result.replica_s += self.env.now
            self.env.process(self._start())
            requests = lost.lose()
            self.result.num_retried += len(requests)
            for request in requests:
                self._route(request)

    def finish(self) -> Result:
        """Ends the simulation and returns the result."""
        self.result.replica_s += self.env.now * len(self._ready)
        self.result.busy_s = sum(replica.busy_s for replica in self._all)
        return self.result

    def _scale(self, by: int) -> None:
        for _ in range(by):
            self.env.process(self._start())
        for _ in range(min(-by, len(self._ready))):
            self._ready.pop()  # it still answers the requests that it has
            self.result.replica_s += self.env.now

    def _start(self) -> Generator[Any, Any, None]:
        """Starts a replica; it gets requests after the cold start."""
        began = self.env.now
        self._num_starting += 1
        yield self.env.timeout(self._cold_start_s)
        self._num_starting -= 1
        self._add(began)
        while self._waiting:
            self._route(self._waiting.popleft())

    def _add(self, began: float) -> None:
        replica = Replica(
            self.env,
            self._calibration,
            self._answered,
            self._refused,
            max_wait_s=self._max_wait_s,
            phase_s=_PHASE_S * len(self._all),
        )
        self.result.replica_s -= began
        self._all.append(replica)
        self._ready.append(replica)

    def _route(self, request: Request) -> None:
        if not self._ready:
            self._waiting.append(request)
            if not self._num_starting:
                self.env.process(self._start())
            return
        one, other = self._random.choice(self._ready), self._random.choice(self._ready)
        (one if len(one.in_flight) <= len(other.in_flight) else other).send(request)

    def _answered(self, request: Request, at: float) -> None:
        self.result.arrived.append(request.arrived)
        self.result.latency_s.append(at - request.arrived)
        self.result.num_tokens += request.num_tokens
        self._settle()

    def _refused(self, _: Request) -> None:
        self.result.num_refused += 1
        self._settle()

    def _settle(self) -> None:
        self._in_flight -= 1
        if not self._in_flight and not self._settled.triggered:
            self._settled.succeed()


def simulate(
    calibration: Calibration,
    requests: Iterable[tuple[float, int]],
    *,
    scaling: Scaling,
    cold_start_s: float = 0.0,
    losses: Sequence[Loss] = (),
    max_wait_s: float = math.inf,
    seed: int = 0,
) -> Result:
    """Simulates a cluster that gets `requests`, pairs of arrival (seconds) and number of tokens; returns the result.

    The simulation ends when all requests are answered or refused. The cluster starts with `min_replica` replicas.
    `max_wait_s` is the server's setting `max_queue_wait_s`.
    """
    cluster = Cluster(calibration, scaling, cold_start_s=cold_start_s, max_wait_s=max_wait_s, seed=seed)
    cluster.env.process(cluster.autoscale())
    for loss in losses:
        cluster.env.process(cluster.lose(loss))
    cluster.env.run(until=cluster.env.process(cluster.serve(requests)))
    return cluster.finish()
