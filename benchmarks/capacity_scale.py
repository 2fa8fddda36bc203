"""Runs the capacity model at the scale of the internet, and draws what happens.

python benchmarks/capacity_scale.py calibration-all-MiniLM-L6-v2.json --plots docs/images
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import math
import random
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bei_core.bench.calibrate import Calibration
from bei_core.capacity.autoscaler import Scaling
from bei_core.capacity.plan import make_plan
from bei_core.capacity.simulation import Loss, Result, simulate
from bei_core.capacity.traffic import lengths_of, poisson

RATE = 10_000.0  # requests per second
SLO_P99_MS = 500.0
COLD_START_S = 45.0
MAX_WAIT_S = 10.0  # the server's setting max_queue_wait_s

NUM_DOCUMENTS = 1_000_000_000
ROWS_PER_PART, BATCH_TOKENS = 8_192, 1_024  # of bei embed-dataset
MEAN_LIFE_H = 6.0  # of a replica that can be taken away


def steady(calibration: Calibration, lengths: list[int], plots: Path) -> None:
    """10,000 requests a second, and a tenth of the replicas lost at once."""
    plan = make_plan(calibration, rate=RATE, lengths=lengths, slo_p99_ms=SLO_P99_MS, price_per_hour=1.0)
    print(plan)
    fixed = Scaling(min_replica=plan.replicas, max_replica=plan.replicas)
    losses = [Loss(20.0, plan.replicas // 10)]
    requests = poisson([(90.0, RATE)], lengths)
    result = simulate(calibration, requests, scaling=fixed, cold_start_s=COLD_START_S, losses=losses)
    print(f"10 k/s, {plan.replicas} replicas, {plan.replicas // 10} lost: {describe(result)}")
    draw(plots / "capacity-loss.png", [(f"{plan.replicas} replicas, a tenth lost after 20 s", result)])


def burst(calibration: Calibration, lengths: list[int], plots: Path) -> None:
    """10 requests a second that become 10,000 for two minutes, with two autoscalers."""
    baseten = Scaling(min_replica=2, max_replica=400, scale_down_delay_s=60.0)
    knative = dataclasses.replace(baseten, decide_every_s=2.0, panic_window_s=6.0)
    results = []
    for name, scaling in (("Baseten's autoscaler", baseten), ("Knative's autoscaler", knative)):
        requests = poisson([(30.0, RATE / 1000), (120.0, RATE), (330.0, RATE / 1000)], lengths)
        result = simulate(calibration, requests, scaling=scaling, cold_start_s=COLD_START_S, max_wait_s=MAX_WAIT_S)
        print(f"burst, {name}: {describe(result)}")
        results.append((name, result))
    draw(plots / "capacity-burst.png", results)


def corpus(calibration: Calibration, lengths: list[int], plots: Path) -> None:
    """A billion documents, by the number of replicas, with replicas that stay and with replicas that are lost."""
    counts = [25, 50, 100, 200, 400, 800]
    part_s = ROWS_PER_PART * fmean(lengths) / BATCH_TOKENS * calibration.batch_s(BATCH_TOKENS)
    figure = Figure(figsize=(6, 3.6), dpi=80, layout="constrained")
    axis = figure.subplots()
    for life_h, name in ((None, "no losses"), (MEAN_LIFE_H, f"each replica lost every {MEAN_LIFE_H:g} h")):
        hours = [corpus_h(count, part_s, life_h) for count in counts]
        print(f"{NUM_DOCUMENTS:,} documents, {name}:", *(f"{n}: {h:.1f} h" for n, h in zip(counts, hours, strict=True)))
        axis.plot(counts, hours, "o-", label=name)
    axis.set(xscale="log", yscale="log", xlabel="replicas", ylabel="hours", title="A billion documents")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(plots / "capacity-corpus.png")


def corpus_h(num_replicas: int, part_s: float, life_h: float | None) -> float:
    """Hours until all parts are done. A lost replica loses its part, which another one computes again."""
    draw, left = random.Random(0), -(-NUM_DOCUMENTS // ROWS_PER_PART)
    free = [(COLD_START_S, _life_s(draw, life_h)) for _ in range(num_replicas)]  # when idle, when lost
    heapq.heapify(free)
    end = 0.0
    while left:
        at, lost_at = heapq.heappop(free)
        if at + part_s > lost_at:
            heapq.heappush(free, (lost_at + COLD_START_S, lost_at + COLD_START_S + _life_s(draw, life_h)))
            continue
        left -= 1
        end = max(end, at + part_s)
        heapq.heappush(free, (at + part_s, lost_at))
    return end / 3600


def _life_s(draw: random.Random, life_h: float | None) -> float:
    return math.inf if life_h is None else draw.expovariate(1 / (life_h * 3600))


def describe(result: Result) -> str:
    """The numbers of a result in one line."""
    total = len(result.latency_s) + result.num_refused
    most = max(sample.num_replicas for sample in result.samples)
    return (
        f"{total:,} requests, {result.num_refused / total:.1%} refused, {result.num_retried:,} sent again, "
        f"p50 {result.percentile_ms(50):,.0f} ms, p99 {result.percentile_ms(99):,.0f} ms, at most {most} replicas, "
        f"{result.utilisation:.0%} busy, {result.replica_s / 3600:.1f} replica-hours"
    )


def draw(path: Path, results: list[tuple[str, Result]]) -> None:
    """Draws the latency and the replicas of each second."""
    figure = Figure(figsize=(6 * len(results), 4.6), dpi=80, layout="constrained")
    grid = figure.subplots(2, len(results), sharex=True, sharey="row", squeeze=False)
    for (latency, replicas), (name, result) in zip(grid.T, results, strict=True):
        latency.set_title(name)
        _latency(latency, result)
        seconds = [sample.at for sample in result.samples]
        replicas.plot(seconds, [sample.num_ready for sample in result.samples], label="ready")
        replicas.plot(seconds, [sample.num_replicas for sample in result.samples], ":", label="ready and starting")
        replicas.set(xlabel="seconds", ylabel="replicas", ylim=0)
        replicas.legend()
        replicas.grid(alpha=0.3)
    figure.savefig(path)


def _latency(axis: Axes, result: Result) -> None:
    """Draws p50 and p99 of the requests that arrived in each second."""
    second = np.asarray(result.arrived).astype(int)
    order = np.argsort(second, kind="stable")
    present, starts = np.unique(second[order], return_index=True)
    groups = np.split(np.asarray(result.latency_s)[order] * 1e3, starts[1:])
    for percent in (50, 99):
        axis.plot(present, [np.percentile(group, percent) for group in groups], label=f"p{percent}")
    axis.set(yscale="log", ylabel="latency, ms")
    axis.legend()
    axis.grid(alpha=0.3)


SCENARIOS = {"steady": steady, "burst": burst, "corpus": corpus}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="Scenarios to run; all if it is not given.")
    parser.add_argument("--plots", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    calibration = Calibration.read(options.calibration)
    lengths = lengths_of("mixed", calibration)
    for name in options.only or SCENARIOS:
        SCENARIOS[name](calibration, lengths, options.plots)


if __name__ == "__main__":
    main()
