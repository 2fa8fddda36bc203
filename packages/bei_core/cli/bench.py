"""`bei bench`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from bei_core.bench import Options, plot, run
from bei_core.bench.calibrate import Calibration, calibrate
from bei_core.cli.flags import Command, flags_of
from bei_core.errors import BeiError, ConfigError

# Flags that --calibrate sets by itself.
_NOT_OF_CALIBRATIONS = {"rate", "clients", "num_requests", "warmup", "batch", "shape", "path", "counters", "label"}


@click.command(cls=Command, params=flags_of(Options))
@click.option("--output", type=click.Path(path_type=Path), help="File to write the report to, as JSON.")
@click.option(
    "--plot-to", type=click.Path(path_type=Path), help="Picture to draw; needs pip install 'bei-core[bench]'."
)
@click.option("--calibrate", "is_calibration", is_flag=True, help="Measure the service curve for bei capacity instead.")
def command(output: Path | None, plot_to: Path | None, is_calibration: bool, **flags: object) -> None:
    """Measure a running server: throughput, latency, and CPU time per request.

    Exits with status 1 if a request failed.
    """
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    options = msgspec.convert(given, Options)
    if is_calibration:
        if chosen := sorted(_NOT_OF_CALIBRATIONS & given.keys()) or (["plot_to"] if plot_to else []):
            raise ConfigError(f"--calibrate cannot be combined with --{chosen[0].replace('_', '-')}")
        return _calibrate(options, output)
    report = run(options)
    click.echo(report)
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / "report.json"
        report.write(path)
        if plot_to is not None:
            plot([path], plot_to)
    if report.errors:
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(report.errors.items()))
        raise BeiError(f"{sum(report.errors.values())} requests failed ({counts})")


def _calibrate(options: Options, output: Path | None) -> None:
    """Write the calibration of the server to `output`, or to the model's usual file."""
    found = calibrate(options)
    path = output or Calibration.path_of(found.model)
    found.write(path)
    click.echo(f"{found}\nwritten to {path}")
