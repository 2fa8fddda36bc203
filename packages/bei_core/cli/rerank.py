"""`bei rerank`."""

from __future__ import annotations

from pathlib import Path

import click

from bei_core.cli import ask
from bei_core.cli.flags import Command


@click.command(cls=Command, params=ask.flags())
@click.option("--top-n", type=click.IntRange(min=1), help="How many of the best to print. [default: all]")
@click.argument("query")
@click.argument("texts", nargs=-1)
def command(
    query: str,
    texts: tuple[str, ...],
    top_n: int | None,
    file: Path | None,
    shape: str,
    output: Path | None,
    **flags: object,
) -> None:
    """Order TEXTS by their relevance to QUERY without a server, the best first; - reads one text a line."""
    from bei_core.http.schemas.rerank import RerankRequest
    from bei_core.models.kind import Kind

    ask.check_format(shape, output)
    lines = ask.read_texts(texts, file)
    with ask.served(flags, Kind.RERANKER) as service:
        service.model.check_num_inputs(len(lines))
        ranks = ask.ask(service, RerankRequest(query=query, texts=lines, top_n=top_n))
    ask.write([{**rank, "text": lines[rank["index"]]} for rank in ranks], shape, output)
