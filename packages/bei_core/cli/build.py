"""`bei build`."""

from __future__ import annotations

from pathlib import Path

import click

from bei_core.cli.flags import Command, load_settings, settings_flags
from bei_core.config.one_model import one_model


@click.command(cls=Command, params=settings_flags())
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write. [default: the cache]")
def command(output: Path | None, **flags: object) -> None:
    """Build a self-contained engine folder for each model, and print its path."""
    from bei_core.engines.open import build_engine

    settings = load_settings(flags)
    for one in settings.each() if output is None else [one_model(settings)]:
        click.echo(build_engine(one, output))
