"""`bei bench --plot`: the loads that are measured, and the plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bei_core.bench import Options, Report, plot_sweep, sweep
from bei_core.bench.sweep import loads_up_to
from bei_core.cli.main import app
from bei_core.errors import BeiError, ConfigError
from tests.unit.bench.reports import make_report, make_workload

STAGES = {
    f"te_request_{stage}_duration_{part}": value
    for stage in ("tokenization", "queue", "inference")
    for part, value in (("sum", 0.5), ("count", 10.0))
}


def report_of(options: Options, errors: dict[str, int] | None = None) -> Report:
    return make_report(
        make_workload(name=options.workload),
        label=f"{options.rate or options.clients:g}",
        errors=errors or {},
        texts_per_s=10.0 * options.clients,
        counters=STAGES,
    )


@pytest.mark.parametrize(
    ("options", "loads"),
    [
        (Options(clients=64), [4, 16, 32, 48, 64]),
        (Options(clients=2), [1, 2]),
        (Options(clients=1), [1]),
        (Options(rate=100.0), [6.25, 25, 50, 75, 100]),
    ],
)
def test_the_loads(options: Options, loads: list[float]) -> None:
    assert loads_up_to(options) == loads
    asked = [float(report.label) for report in sweep(options, report_of)]
    assert asked == loads


@pytest.mark.parametrize("options", [Options(clients=8), Options(rate=10.0)])
def test_the_plot_has_latency_throughput_and_stages(options: Options, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = plot_sweep(options, sweep(options, report_of), tmp_path / "loads.svg").read_text()
    for said in ("latency, ms", "texts/s", "mean time of a stage, ms", "p99", "queue", "inference"):
        assert f"<!-- {said} -->" in drawn
    assert f"<!-- {'requests/s' if options.rate else 'clients'} -->" in drawn


def test_a_server_without_our_metrics_leaves_the_stages_empty(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = Options(clients=2)
    reports = [
        msgspec.structs.replace(report, counters={}, latency_ms=None if index else report.latency_ms)
        for index, report in enumerate(sweep(options, report_of))
    ]
    assert plot_sweep(options, reports, tmp_path / "loads.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_the_plot_and_all_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("bei_core.cli.bench.sweep", lambda options: sweep(options, report_of))
    arguments = ["bench", "--clients", "4", "--plot", str(tmp_path / "p.png"), "--output", str(tmp_path / "r.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.output.count("texts/s") == 4
    assert [report["label"] for report in json.loads((tmp_path / "r.json").read_text())] == ["1", "2", "3", "4"]
    assert (tmp_path / "p.png").is_file()


def test_failed_requests_of_any_load_fail_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def measure(options: Options) -> Report:
        return report_of(options, {"429": 2} if options.clients == 2 else {"429": 1, "timeout": 1})

    monkeypatch.setattr("bei_core.cli.bench.sweep", lambda options: sweep(options, measure))
    done = CliRunner().invoke(app, ["bench", "--clients", "2", "--plot", str(tmp_path / "p.png")])
    assert isinstance(done.exception, BeiError)
    assert str(done.exception) == "4 requests failed (429: 3, timeout: 1)"
    assert (tmp_path / "p.png").is_file()


def test_a_missing_matplotlib_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for flag in ("--plot", "--plot-to"):
        done = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:1", flag, str(tmp_path / "p.png")])
        assert isinstance(done.exception, ConfigError)
        assert "pip install 'bei-core[bench]'" in str(done.exception)


def test_both_pictures_at_once_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "--plot", str(tmp_path / "a"), "--plot-to", str(tmp_path / "b")])
    assert "give one of the two" in str(done.exception)
