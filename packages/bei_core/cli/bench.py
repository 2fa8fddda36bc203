"""`bei bench`."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from bei_core.bench import Options, Report, plot, plot_sweep, run, sweep
from bei_core.bench.calibrate import Calibration, calibrate
from bei_core.bench.report import empty_figure
from bei_core.cli.flags import Command, OutputFile, flags_of, given_flags
from bei_core.errors import BeiError, ConfigError

# Flags that --calibrate sets by itself.
_NOT_OF_CALIBRATIONS = {"rate", "clients", "num_requests", "warmup", "batch", "shape", "path", "counters", "label"}


@click.command(cls=Command, params=flags_of(Options))
@click.option("--output", type=OutputFile(), help="File to write the report to, as JSON.")
@click.option("--plot-to", type=OutputFile(), help="Picture to draw; needs pip install 'bei-core[bench]'.")
@click.option(
    "--plot",
    "sweep_to",
    type=OutputFile(),
    help="Measure five loads up to the one that is given, and draw latency, throughput and the time of each stage "
    "against the load; --output is then a list of reports. Needs pip install 'bei-core[bench]'.",
)
@click.option("--calibrate", "is_calibration", is_flag=True, help="Measure the service curve for bei capacity instead.")
def command(
    output: Path | None, plot_to: Path | None, sweep_to: Path | None, is_calibration: bool, **flags: object
) -> None:
    """Measure a running server: throughput, latency, and CPU time per request.

    Exits with status 1 if a request failed.
    """
    given = given_flags(flags)
    options = msgspec.convert(given, Options)
    if is_calibration:
        pictures = [name for name, path in (("plot_to", plot_to), ("plot", sweep_to)) if path is not None]
        if chosen := sorted(_NOT_OF_CALIBRATIONS & given.keys()) or pictures:
            raise ConfigError(f"--calibrate cannot be combined with --{chosen[0].replace('_', '-')}")
        return _calibrate(options, output)
    if sweep_to is not None and plot_to is not None:
        raise ConfigError("--plot and --plot-to draw different pictures; give one of the two")
    if sweep_to is not None or plot_to is not None:
        empty_figure(1)  # a missing package is said before anything is measured
    reports = [run(options)] if sweep_to is None else sweep(options)
    for report in reports:
        click.echo(report)
    if sweep_to is not None:
        plot_sweep(options, reports, sweep_to)
        if output is not None:
            output.write_bytes(msgspec.json.format(msgspec.json.encode(reports), indent=1) + b"\n")
    else:
        _write(reports[0], output, plot_to)
    return _fail_on_errors(reports, options.url)


def _calibrate(options: Options, output: Path | None) -> None:
    """Write the calibration of the server to `output`, or to the model's usual file."""
    found = calibrate(options)
    path = output or Calibration.path_of(found.model)
    found.write(path)
    click.echo(f"{found}\nwritten to {path}")


def _write(report: Report, output: Path | None, plot_to: Path | None) -> None:
    """Write a report as JSON, and its picture."""
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / "report.json"
        report.write(path)
        if plot_to is not None:
            plot([path], plot_to)


def _fail_on_errors(reports: Sequence[Report], url: str) -> None:
    """Raise BeiError if a request failed."""
    errors = sum((Counter(report.errors) for report in reports), Counter[str]())
    if errors:
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(errors.items()))
        hint = f"; is a server running at {url}? --url names another" if "connect" in errors else ""
        raise BeiError(f"{errors.total()} requests failed ({counts}){hint}")
