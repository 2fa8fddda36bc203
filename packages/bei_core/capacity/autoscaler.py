"""Decides the number of replicas by the rules of Baseten or Knative. Pure policy: time is an argument.

Baseten averages the requests in flight over `autoscaling_window_s`, once in each window. The wanted number of replicas
is this mean divided by `concurrency_target` times `target_utilization`, rounded up. Baseten adds replicas at once. It
removes half of the excess when the load has been low for a whole `scale_down_delay_s`, and again after each further
delay (https://docs.baseten.co/deployment/autoscaling). Knative decides every two seconds by the mean over the same
window. If the mean over a tenth of the window is twice the load that the replicas hold, Knative uses this mean instead
(its panic mode).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

SAMPLE_S = 1.0  # how often the requests in flight are counted

_PANIC = 2.0  # times the load that the replicas hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The settings, by Baseten's names. The defaults are Baseten's, except `concurrency_target` and `max_replica`."""

    min_replica: int = 1
    max_replica: int = 10
    autoscaling_window_s: float = 60.0
    scale_down_delay_s: float = 900.0
    max_scale_down_rate: float = 0.5  # the share of the excess that is removed at a time
    concurrency_target: int = 32
    target_utilization: float = 0.7
    decide_every_s: float = 60.0
    panic_window_s: float = 0.0  # 0: no panic mode

    @property
    def requests_per_replica(self) -> float:
        """The requests in flight that a replica should hold."""
        return self.concurrency_target * self.target_utilization

    def num_replicas(self, in_flight: float) -> int:
        """The number of replicas that hold `in_flight` requests, within the limits."""
        return min(max(math.ceil(in_flight / self.requests_per_replica), self.min_replica), self.max_replica)


@dataclass(slots=True)
class Autoscaler:
    """Decides from samples of the requests in flight, taken every SAMPLE_S seconds."""

    scaling: Scaling
    _samples: deque[float] = field(default_factory=deque)
    _low_since: float | None = None  # the time since which fewer replicas are enough

    def observe(self, in_flight: int) -> None:
        """Records a sample."""
        self._samples.append(in_flight)
        if len(self._samples) * SAMPLE_S > self.scaling.autoscaling_window_s:
            self._samples.popleft()

    def decide(self, now: float, num_replicas: int) -> int:
        """Returns the wanted number of replicas; `num_replicas` counts those that run or start. `now` is in seconds."""
        wanted = self._wanted(num_replicas)
        if wanted >= num_replicas:
            self._low_since = None
            return wanted
        if self._low_since is None:
            self._low_since = now
        if now - self._low_since < self.scaling.scale_down_delay_s:
            return num_replicas
        self._low_since = now
        return num_replicas - math.ceil((num_replicas - wanted) * self.scaling.max_scale_down_rate)

    def _wanted(self, num_replicas: int) -> int:
        """Returns the number of replicas for the load of the window, or of the panic window if it needs far more."""
        wanted = self.scaling.num_replicas(self._mean(self.scaling.autoscaling_window_s))
        if self.scaling.panic_window_s:
            soon = self.scaling.num_replicas(self._mean(self.scaling.panic_window_s))
            if soon >= _PANIC * num_replicas:
                return max(wanted, soon)
        return wanted

    def _mean(self, window_s: float) -> float:
        """Returns the mean of the samples of the last `window_s` seconds; 0 before the first sample."""
        latest = list(self._samples)[-max(1, int(window_s / SAMPLE_S)) :]
        return sum(latest) / len(latest) if latest else 0.0
