"""`bei embed`."""

from __future__ import annotations

from pathlib import Path

import click

from bei_core.cli import ask
from bei_core.cli.flags import Command


@click.command(cls=Command, params=ask.flags())
@click.argument("texts", nargs=-1)
def command(texts: tuple[str, ...], file: Path | None, shape: str, output: Path | None, **flags: object) -> None:
    """Embed TEXTS without a server and print a JSON list for each. With -, read one text per line from stdin."""
    from bei_core.http.schemas.tei import EmbedRequest
    from bei_core.models.kind import Kind

    ask.check_format(shape, output)
    lines = ask.read_texts(texts, file)
    with ask.served(flags, Kind.EMBEDDING) as service:
        rows = [
            {"text": text, "embedding": [float(value) for value in row]}
            for some in ask.in_requests(service, lines)
            for text, row in zip(some, ask.ask(service, EmbedRequest(inputs=list(some))), strict=True)
        ]
    ask.write(rows, shape, output, bare="embedding")
