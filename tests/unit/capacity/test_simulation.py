"""The simulation against queues whose behaviour is known, and against what clusters must never do."""

from __future__ import annotations

import msgspec
import pytest

from bei_core.bench.calibrate import Calibration
from bei_core.capacity.autoscaler import Scaling
from bei_core.capacity.simulation import Loss, simulate
from bei_core.capacity.traffic import poisson

ONE = Scaling(min_replica=1, max_replica=1)

SERVER = Calibration(
    model="owner/name",
    compute_type="cpu+f32",
    max_batch_tokens=1_000,
    per_batch_s=0.01,
    per_token_s=0.001,
    between_s=0.0,
    accept_s=0.0,
    reply_s=0.0,
    overhead_s=0.0,
    tokens_per_word=1.5,
    workload="mixed",
    machine={},
    levels=[],
)


def test_a_request_alone_takes_the_time_of_every_stage() -> None:
    server = msgspec.structs.replace(
        SERVER, accept_s=1.0, reply_s=2.0, overhead_s=4.0, between_s=7.0, between_batches_s=1.0
    )
    result = simulate(server, [(5.0, 10)], scaling=ONE)
    assert result.latency_s == [pytest.approx(0.02 + 1 + 2 + 4 + 8)]
    assert (result.arrived, result.num_tokens) == ([5.0], 10)
    assert result.busy_s == pytest.approx(0.02)


def test_a_machine_that_changes_its_speed_does_so_over_and_over() -> None:
    server = msgspec.structs.replace(SERVER, slowdowns=(1.0, 3.0))
    result = simulate(server, [(0.05, 10), (0.15, 10), (0.25, 10)], scaling=ONE)
    assert result.latency_s == pytest.approx([0.02, 0.06, 0.02])


def test_replicas_are_not_slow_at_the_same_moments() -> None:
    server = msgspec.structs.replace(SERVER, slowdowns=(1.0,) * 73 + (3.0,) * 73)  # each for 7.3 s
    both = Scaling(min_replica=2, max_replica=2)
    requests = [(0.5 * index, 10) for index in range(10)]
    latencies = simulate(server, requests, scaling=both).latency_s
    assert {round(each, 6) for each in latencies} == {0.02, 0.06}


def test_requests_that_come_while_a_batch_runs_make_the_next_batch() -> None:
    result = simulate(SERVER, [(0.0, 10), (0.001, 20), (0.002, 30)], scaling=ONE)
    first, batch = 0.02, 0.01 + 0.05
    assert result.latency_s == pytest.approx([first, first + batch - 0.001, first + batch - 0.002])
    assert result.busy_s == pytest.approx(first + batch)


@pytest.mark.long
def test_batches_of_one_behave_as_an_m_d_1_queue() -> None:
    server = msgspec.structs.replace(SERVER, max_batch_tokens=10, per_batch_s=0.0)
    result = simulate(server, poisson([(1_000.0, 70.0)], [10]), scaling=ONE)
    mean = sum(result.latency_s) / len(result.latency_s)
    assert mean == pytest.approx(0.01 * (1 + 0.7 / (2 * 0.3)), rel=0.03), "Pollaczek-Khinchine"
    assert result.utilisation == pytest.approx(0.7, rel=0.02)


def test_two_replicas_divide_the_load() -> None:
    two = Scaling(min_replica=2, max_replica=2)
    result = simulate(SERVER, poisson([(200.0, 80.0)], [10]), scaling=two)
    assert result.utilisation < 0.75 * simulate(SERVER, poisson([(200.0, 80.0)], [10]), scaling=ONE).utilisation


def test_a_cluster_without_replicas_starts_one_for_the_first_request() -> None:
    result = simulate(SERVER, [(1.0, 10), (2.0, 10)], scaling=Scaling(min_replica=0), cold_start_s=30.0)
    assert result.latency_s == pytest.approx([30.03, 29.03])
    assert result.replica_s == pytest.approx(30.03), "a start is paid for"


def test_a_burst_adds_replicas_which_leave_after_it() -> None:
    scaling = Scaling(max_replica=8, scale_down_delay_s=60.0, concurrency_target=4)
    phases = [(120.0, 10.0), (120.0, 150.0), (600.0, 10.0)]
    result = simulate(SERVER, poisson(phases, [10]), scaling=scaling, cold_start_s=20.0)
    counts = [sample.num_replicas for sample in result.samples]
    assert counts[100] == 1
    assert max(counts) > 2
    assert counts[-1] == 1


def test_every_request_is_answered_although_replicas_are_lost() -> None:
    requests = list(poisson([(60.0, 100.0)], [10]))
    three = Scaling(min_replica=3, max_replica=3)
    losses = [Loss(20.0, 2), Loss(30.0, 1), Loss(31.0, 9)]
    result = simulate(SERVER, requests, scaling=three, cold_start_s=15.0, losses=losses)
    assert sorted(result.arrived) == [at for at, _ in requests]
    assert result.num_retried > 0
    ready = [sample.num_ready for sample in result.samples]
    assert (ready[18], ready[24], ready[32], ready[59]) == (3, 1, 0, 3)


def test_requests_that_would_wait_too_long_are_refused() -> None:
    requests = list(poisson([(60.0, 300.0)], [100]))
    result = simulate(SERVER, requests, scaling=ONE, max_wait_s=2.0)
    assert result.num_refused > 0.5 * len(requests)
    assert result.num_refused + len(result.latency_s) == len(requests)
    assert result.percentile_ms(99) < 4_000


def test_a_batch_takes_at_most_a_third_of_the_longest_wait_as_in_the_server() -> None:
    requests = [(0.0, 100), *((0.001 * index, 100) for index in range(1, 6))]
    server = msgspec.structs.replace(SERVER, per_batch_s=0.0)
    latencies = simulate(server, requests, scaling=ONE, max_wait_s=0.9).latency_s
    ends = sorted(at + latency for (at, _), latency in zip(requests, latencies, strict=True))
    assert ends == pytest.approx([0.1, 0.4, 0.4, 0.4, 0.6, 0.6])


def test_a_seed_gives_the_same_result_again() -> None:
    def again(seed: int) -> list[float]:
        two = Scaling(min_replica=2, max_replica=2)
        return simulate(SERVER, poisson([(20.0, 80.0)], [10, 90]), scaling=two, seed=seed).latency_s

    assert again(1) == again(1) != again(2)
