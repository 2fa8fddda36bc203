"""`bei embed`."""

from __future__ import annotations

import asyncio
import json
import sys

import click

from bei_core.cli.flags import Command, load_settings, one_model, settings_flags


@click.command(cls=Command, params=settings_flags())
@click.argument("texts", nargs=-1, required=True)
def command(texts: tuple[str, ...], **flags: object) -> None:
    """Embed TEXTS without a server, and print a JSON list for each; - reads one text a line from standard input."""
    from bei_core.models.kind import Kind
    from bei_core.serving.service import Service
    from bei_core.tasks import Embed

    lines = [line.rstrip("\n") for line in sys.stdin] if texts == ("-",) else list(texts)
    service = Service.open(one_model(load_settings(flags)))
    try:
        service.model.check_kind([Kind.EMBEDDING])
        for row in asyncio.run(service.run(Embed(lines, service.model.default_options))).rows:
            click.echo(json.dumps(row.tolist()))
    finally:
        service.close()
