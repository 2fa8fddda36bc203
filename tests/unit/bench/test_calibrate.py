"""The calibration: the numbers that it finds in reports of a server whose times are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult

import msgspec
import pytest
from click.testing import CliRunner

from bei_core.bench import Options, Report, calibrate
from bei_core.bench.calibrate import Calibration, Level
from bei_core.bench.observe import BUSY_S, Moment
from bei_core.bench.report import Latency
from bei_core.cli import main as cli
from bei_core.errors import BeiError, ConfigError
from tests.unit.bench.reports import make_report, make_workload

FIXED_S, TOKEN_S, BETWEEN_S, BETWEEN_BATCHES_S, LOOP_S, AROUND_S = 0.004, 0.0002, 0.0005, 0.0008, 0.0003, 0.002
QUEUE_S = 0.001
TOKENS = 30


def report(
    options: Options, latency_s: float, rate: float, counters: dict[str, float], errors: dict[str, int]
) -> Report:
    latency = Latency(mean=latency_s * 1e3, p50=1.0, p95=1.0, p99=1.0, max=1.0)
    workload = make_workload(
        name=options.workload,
        loop="closed",
        num_requests=options.num_requests,
        batch=options.batch,
        mean_words=20.0,
        mean_tokens=float(TOKENS),
    )
    return make_report(
        workload,
        num_ok=options.num_requests,
        errors=errors,
        wall_s=options.num_requests / rate,
        requests_per_s=rate,
        texts_per_s=rate,
        tokens_per_s=rate * TOKENS,
        latency_ms=latency,
        counters=counters,
        machine={"num_cpus": 2},
        server={"model_id": "owner/name", "compute_type": "cpu+f32", "batch_tokens": 4096},
    )


def answer(options: Options) -> Report:
    """What a server measures whose batches hold half of the clients, or the only one."""
    if options.path == "/tokenize":
        return report(options, 0.0, 1 / LOOP_S, {}, {})
    items = max(1, options.clients // 2)
    num_batches = options.num_requests / items
    batch_s = FIXED_S + TOKEN_S * TOKENS * items
    after_s = BETWEEN_BATCHES_S + BETWEEN_S * items
    idle_s = AROUND_S if options.clients == 1 else 0.0
    counters = {
        "bei_engine_busy_seconds_total": num_batches * batch_s,
        "te_batch_next_tokens_sum": float(options.num_requests * TOKENS),
        "te_batch_next_tokens_count": num_batches,
        "te_batch_next_size_sum": float(options.num_requests),
        "te_request_queue_duration_sum": options.num_requests * QUEUE_S,
        "te_request_inference_duration_sum": options.num_requests * batch_s,
    }
    around_s = AROUND_S * (0.5 if options.clients == 1 else 1 if options.clients <= 8 else 3)  # many send at one moment
    http_s = after_s + LOOP_S * (1 + items) / 2 + around_s
    return report(options, QUEUE_S + batch_s + http_s, items / (batch_s + after_s + idle_s), counters, {})


def test_the_times_of_a_server_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrate, "run", answer)
    found = calibrate.calibrate(Options(rate=5.0, batch=3), seconds=1.0)
    assert found.per_batch_s == pytest.approx(FIXED_S)
    assert found.per_token_s == pytest.approx(TOKEN_S)
    assert found.between_s == pytest.approx(BETWEEN_S)
    assert found.between_batches_s == pytest.approx(BETWEEN_BATCHES_S)
    assert found.accept_s + found.reply_s == pytest.approx(LOOP_S)
    assert found.overhead_s == pytest.approx(AROUND_S)
    assert (found.model, found.compute_type, found.max_batch_tokens) == ("owner/name", "cpu+f32", 4096)
    assert found.num_tokens(20) == TOKENS
    found.write(tmp_path / "found.json")
    assert Calibration.read(tmp_path / "found.json") == found
    assert "4.000 ms + 200.00 us a token" in str(found)


def test_changes_of_the_speed_are_found_and_do_not_change_the_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def watch(url: SplitResult, every_s: float) -> Iterator[list[Moment]]:
        batch_s = FIXED_S + TOKEN_S * TOKENS
        yield [
            Moment(at=0.0, busy_s=1.0, num_batches=5, num_tokens=5 * TOKENS),
            Moment(at=0.2, busy_s=1.0 + 10 * batch_s, num_batches=15, num_tokens=15 * TOKENS),
            Moment(at=0.4, busy_s=1.0 + 10 * batch_s, num_batches=15, num_tokens=15 * TOKENS),  # no batch ended
            Moment(at=0.6, busy_s=1.0 + 40 * batch_s, num_batches=25, num_tokens=25 * TOKENS),
        ]

    monkeypatch.setattr(calibrate, "run", answer)
    monkeypatch.setattr(calibrate, "watch", watch)
    found = calibrate.calibrate(Options(), seconds=1.0)
    assert found.slowdowns == pytest.approx([2 / 3, 2 / 3, 2, 2])
    assert sum(1 / each for each in found.slowdowns) == pytest.approx(len(found.slowdowns))
    assert found.batch_s(TOKENS, now=0.25) == pytest.approx(2 * (FIXED_S + TOKEN_S * TOKENS))
    assert "batches take 0.67 to 2.00 times these times, by the moment" in str(found)


def test_each_turn_tells_how_fast_the_machine_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_turn(options: Options) -> Report:
        measured, factor = answer(options), 2.0 if options.seed == 1 else 1.0
        busy_s = factor * measured.counters.get(BUSY_S, 0.0)
        return msgspec.structs.replace(measured, counters={**measured.counters, BUSY_S: busy_s})

    monkeypatch.setattr(calibrate, "run", slow_turn)
    found = calibrate.calibrate(Options(), seconds=1.0)
    assert found.turns == pytest.approx([5 / 6, 10 / 6, 5 / 6, 5 / 6, 5 / 6])  # of a mean of 6 / 5
    assert found.at_turn(found.turns[0]).batch_s(TOKENS) == pytest.approx(FIXED_S + TOKEN_S * TOKENS)
    assert "turns        0.83 to 1.67 times" in str(found)


def test_times_below_zero_are_not_found() -> None:
    def levels(*points: tuple[float, float]) -> list[Level]:
        return [
            Level(clients=1, requests_per_s=1, mean_ms=1, batch_items=1, batch_tokens=n, batch_s=s, between_s=0)
            for n, s in points
        ]

    assert calibrate.fit(levels((10, 0.001), (100, 0.02))) == pytest.approx((0.0, 0.021 / 110))
    assert calibrate.fit(levels((10, 0.02), (100, 0.01))) == pytest.approx((0.015, 0.0))


def test_a_server_that_fails_requests_cannot_be_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "run", lambda options: report(options, 1.0, 1.0, {}, {"429": 2}))
    with pytest.raises(BeiError, match="failed requests of the calibration: 429: 2"):
        calibrate.calibrate(Options())


def test_a_server_without_metrics_of_batches_cannot_be_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "run", lambda options: report(options, 1.0, 1.0, {}, {}))
    with pytest.raises(BeiError, match="does not tell its batches"):
        calibrate.calibrate(Options())


def test_a_file_without_a_calibration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for name in ("x.json", "missing.json"):
        with pytest.raises(ConfigError, match="bei bench --calibrate"):
            Calibration.read(tmp_path / name)


def test_a_models_file_has_the_last_part_of_its_name() -> None:
    assert Calibration.path_of(".models/all-MiniLM-L6-v2/") == Path("calibration-all-MiniLM-L6-v2.json")


def test_the_command_writes_the_models_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrate, "run", answer)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["bench", "--calibrate", "--workload", "short"])
    assert result.exit_code == 0, result.output
    assert "written to calibration-name.json" in result.output
    assert Calibration.read(Path("calibration-name.json")).workload == "short"


@pytest.mark.parametrize("words", [("--rate", "5"), ("--clients", "3"), ("--plot-to", "x.png")])
def test_flags_that_a_calibration_would_ignore_are_refused(words: tuple[str, str]) -> None:
    result = CliRunner().invoke(cli.app, ["bench", "--calibrate", *words])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == f"--calibrate cannot be combined with {words[0]}"
