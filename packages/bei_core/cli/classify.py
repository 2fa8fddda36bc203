"""`bei classify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bei_core.cli import ask
from bei_core.cli.flags import Command

if TYPE_CHECKING:
    from bei_core.serving.service import Service


@click.command(cls=Command, params=ask.flags())
@click.argument("texts", nargs=-1)
def command(texts: tuple[str, ...], file: Path | None, shape: str, output: Path | None, **flags: object) -> None:
    """Print the labels of TEXTS without a server, or the entities in them; - reads one text a line.

    The model is a classifier, or a token classifier (NER).
    """
    from bei_core.models.kind import Kind

    ask.check_format(shape, output)
    lines = ask.read_texts(texts, file)
    with ask.served(flags, Kind.CLASSIFIER, Kind.TOKEN_CLASSIFIER) as service:
        find = _entities if service.model.kind is Kind.TOKEN_CLASSIFIER else _labels
        rows = [row for some in ask.in_requests(service, lines) for row in find(service, some)]
    ask.write(rows, shape, output)


def _labels(service: Service, texts: Sequence[str]) -> Iterator[ask.Row]:
    """For each text its labels, the best first."""
    from bei_core.http.schemas.huggingface import PredictRequest

    found = ask.ask(service, PredictRequest(inputs=[[text] for text in texts]))
    for text, labels in zip(texts, found, strict=True):
        yield from ({"text": text, **label} for label in labels)


def _entities(service: Service, texts: Sequence[str]) -> Iterator[ask.Row]:
    """For each text its entities, in their order."""
    from bei_core.http.schemas.baseten import PredictTokensRequest

    found = ask.ask(service, PredictTokensRequest(inputs=list(texts), aggregation_strategy="simple"))
    names = ("entity_group", "word", "start", "end", "score")
    for text, entities in zip(texts, found, strict=True):
        yield from ({"text": text, **{name: entity[name] for name in names}} for entity in entities)
