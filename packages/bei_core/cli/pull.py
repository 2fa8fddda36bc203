"""`bei pull`."""

from __future__ import annotations

import os

import click

from bei_core.cli.flags import Command, load_settings, settings_flags
from bei_core.config.one_model import one_model
from bei_core.errors import ConfigError


@click.command(cls=Command, params=settings_flags())
@click.argument("model", required=False)
def command(model: str | None, **flags: object) -> None:
    """Fetch MODEL and build its engine, so that a later start needs no network; prints both folders.

    MODEL is a Hugging Face repository (its page's URL too), or the URL of a bucket or a tar.
    """
    from bei_core.engines.build import fetch_checkpoint
    from bei_core.engines.provider import EngineProvider

    if model is not None and flags["model_id"] is not None:
        raise ConfigError("the model is given twice, as MODEL and by --model-id")
    settings = one_model(load_settings({**flags, "model_id": model or flags["model_id"]}))
    checkpoint = fetch_checkpoint(settings, settings.cache_dir / "checkpoints")
    click.echo(f"checkpoint {os.fspath(checkpoint.folder)}")
    lease = EngineProvider(settings, to_run=False, checkpoint=checkpoint).get()
    lease.release()
    click.echo(f"engine {lease.folder}")
