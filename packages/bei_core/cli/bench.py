"""`bei bench`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from bei_core.bench import Options, plot, run
from bei_core.cli.flags import Command, flags_of
from bei_core.errors import BeiError


@click.command(cls=Command, params=flags_of(Options))
@click.option("--output", type=click.Path(path_type=Path), help="File to write the report to, as JSON.")
@click.option(
    "--plot-to", type=click.Path(path_type=Path), help="Picture to draw; needs pip install 'bei-core[bench]'."
)
def command(output: Path | None, plot_to: Path | None, **flags: object) -> None:
    """Measure a running server: throughput, latency, and CPU time per request.

    Exits with status 1 if a request failed.
    """
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    report = run(msgspec.convert(given, Options))
    click.echo(report)
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / "report.json"
        report.write(path)
        if plot_to is not None:
            plot([path], plot_to)
    if report.errors:
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(report.errors.items()))
        raise BeiError(f"{sum(report.errors.values())} requests failed ({counts})")
