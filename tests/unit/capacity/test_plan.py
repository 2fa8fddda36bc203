"""The number of replicas of a load, and the lengths that it is computed from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from bei_core.bench.calibrate import Calibration
from bei_core.bench.workload import KINDS
from bei_core.capacity import plan
from bei_core.capacity.traffic import lengths_of, poisson
from bei_core.cli import main as cli
from bei_core.errors import ConfigError
from tests.unit.capacity.test_simulation import SERVER

FAST = msgspec.structs.replace(SERVER, per_batch_s=0.002, per_token_s=0.0001)


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_NUM_REQUESTS", 1_000)
    monkeypatch.setattr(plan, "_MIN_S", 5.0)


def test_a_plan_is_the_smallest_number_of_replicas_that_keeps_the_latency() -> None:
    made = plan.make_plan(FAST, rate=1_000.0, lengths=[30], slo_p99_ms=30.0, price_per_hour=2.0)
    assert made.p99_ms <= 30.0
    assert 3 < made.replicas < 15
    with_fewer = plan._one_of(made.replicas - 1, FAST, 1_000.0, [30])
    assert with_fewer.percentile_ms(99) > 30.0
    assert made.cost_per_billion_tokens == pytest.approx(made.replicas * 2.0 / (1_000 * 30 * 3600) * 1e9)


def test_a_plan_tells_the_latency_at_the_fastest_and_the_slowest_turn_of_the_calibration() -> None:
    def planned(*turns: float) -> plan.Plan:
        calibration = msgspec.structs.replace(FAST, turns=turns)
        return plan.make_plan(calibration, rate=1_000.0, lengths=[30], slo_p99_ms=30.0)

    steady = planned(1.0, 1.0)
    assert steady.p99_range_ms == (steady.p99_ms, steady.p99_ms)
    low, high = planned(1.1, 0.9, 1.5).p99_range_ms or (0.0, 0.0)
    assert low < steady.p99_ms < high
    assert f"p99 {low:.1f} to {high:.1f} with the fastest and the slowest turn" in str(planned(1.1, 0.9, 1.5))
    assert planned().p99_range_ms is None


def test_a_tighter_promise_needs_more_replicas() -> None:
    counts = [plan.make_plan(FAST, rate=1_000.0, lengths=[30], slo_p99_ms=ms).replicas for ms in (200.0, 30.0, 12.0)]
    assert counts == sorted(set(counts))


def test_a_promise_that_no_replica_keeps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a replica that is nearly idle has a p99 of \d+\.\d ms"):
        plan.make_plan(FAST, rate=100.0, lengths=[30], slo_p99_ms=4.0)


def test_arrivals_have_the_rates_of_their_phases() -> None:
    times = [at for at, _ in poisson([(100.0, 10.0), (50.0, 0.0), (100.0, 100.0)], [5])]
    assert times == sorted(times)
    assert len([at for at in times if at < 100]) == pytest.approx(1_000, rel=0.1)
    assert not [at for at in times if 100 <= at < 150]
    assert len([at for at in times if at >= 150]) == pytest.approx(10_000, rel=0.05)


def test_lengths_are_a_workload_a_mean_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("7\n500\n")
    assert lengths_of(str(file), SERVER) == [7, 500]
    assert sum(lengths_of("128", SERVER)) / 20_000 == pytest.approx(128, rel=0.01)
    assert max(lengths_of("short", SERVER)) == SERVER.num_tokens(KINDS["short"].longest)


@pytest.mark.parametrize("text", ["", "12 -3", "0", "one"])
def test_a_file_of_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "lengths.txt").write_text(text)
    with pytest.raises(ConfigError, match="of tokens"):
        lengths_of(str(tmp_path / "lengths.txt"), SERVER)


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["capacity", "--model", "owner/name", "--rate", "200", *words])


def test_the_command_reads_the_models_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FAST.write(Calibration.path_of("owner/name"))
    shown = run("--slo-p99-ms", "50", "--price-per-hour", "1.5")
    assert shown.exit_code == 0, shown.output
    assert "replicas" in shown.output
    assert "per billion tokens" in shown.output
    made = msgspec.json.decode(run("--slo-p99-ms", "50", "--lengths", "30", "--json").output, type=plan.Plan)
    assert made.cost_per_billion_tokens is None
    assert made.mean_tokens == pytest.approx(30, rel=0.02)


def test_the_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    msgspec.structs.replace(FAST, model="owner/other").write(path)
    result = run("--slo-p99-ms", "50", "--calibration", str(path))
    assert isinstance(result.exception, ConfigError)
    assert "is the calibration of owner/other, not of owner/name" in str(result.exception)
