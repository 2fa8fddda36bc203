"""`bei capacity`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from bei_core.bench.calibrate import Calibration
from bei_core.errors import ConfigError


@click.command()
@click.option("--model", required=True, help="Model that was calibrated; its file is calibration-NAME.json.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), required=True, help="Requests per second.")
@click.option(
    "--lengths",
    default="mixed",
    show_default=True,
    help="Lengths of the texts: a workload of bei bench, a mean number of tokens, or a file with a number a line.",
)
@click.option("--slo-p99-ms", type=click.FloatRange(0, min_open=True), required=True, help="Latency to keep, in ms.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Another file of bei bench --calibrate.")
@click.option("--price-per-hour", type=click.FloatRange(0), help="Price of a replica for an hour, in any currency.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    rate: float,
    lengths: str,
    slo_p99_ms: float,
    calibration: Path | None,
    price_per_hour: float | None,
    as_json: bool,
) -> None:
    """Compute how many replicas a load needs, from a service curve that bei bench --calibrate measured."""
    try:
        from bei_core.capacity.plan import make_plan
        from bei_core.capacity.traffic import lengths_of
    except ImportError as error:
        raise ConfigError("bei capacity needs simpy; pip install 'bei-core[capacity]'") from error
    measured = Calibration.read(calibration or Calibration.path_of(model))
    if Calibration.path_of(measured.model) != Calibration.path_of(model):
        raise ConfigError(f"{calibration} is the calibration of {measured.model}, not of {model}")
    plan = make_plan(
        measured,
        rate=rate,
        lengths=lengths_of(lengths, measured),
        slo_p99_ms=slo_p99_ms,
        price_per_hour=price_per_hour,
    )
    click.echo(msgspec.json.encode(plan) if as_json else plan)
