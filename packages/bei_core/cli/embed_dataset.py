"""`bei embed-dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import click
import msgspec

from bei_core.cli.flags import Command, flags_of, given_flags, load_settings, settings_flags
from bei_core.errors import ConfigError
from bei_core.jobs.options import SETTINGS_OF_SERVERS, JobOptions, RayOptions, check_settings

StructT = TypeVar("StructT", bound=msgspec.Struct)


def _flags_of_settings() -> Iterator[click.Parameter]:
    """The flags of settings. `--help` does not show those of a server, which are refused with the reason."""
    for flag in settings_flags():
        if isinstance(flag, click.Option):
            flag.hidden = flag.name in SETTINGS_OF_SERVERS
        yield flag


@click.command(cls=Command, params=[*flags_of(JobOptions), *flags_of(RayOptions), *_flags_of_settings()])
@click.argument("source", metavar="INPUT")
@click.option("--output", required=True, help="Folder or URL of a folder; a job that was stopped there goes on.")
def command(source: str, output: str, **flags: object) -> None:
    """Run each row of INPUT through a model and write Parquet files.

    INPUT is a file, a folder or a glob of Parquet, Arrow, JSON lines, CSV or text: a path, a URL of an object store, or
    hf://datasets/OWNER/NAME/... A reranker, classifier, SPLADE or ColBERT model writes its own columns.
    """
    options, ray = _taken(flags, JobOptions), _taken(flags, RayOptions)
    given = {name: value for name, value in flags.items() if name not in (*_names(JobOptions), *_names(RayOptions))}
    if flags["ray"] is None and (unused := given_flags(flags).keys() & set(_names(RayOptions))):
        raise ConfigError(f"without --ray a job has no workers; leave out {', '.join(sorted(unused))}")
    check_settings(given_flags(given))
    settings = load_settings(given)
    try:
        from bei_core.jobs import embed
        from bei_core.jobs.job import tune_process

        tune_process()
        report = embed(source, output, settings=settings, options=options, ray=None if flags["ray"] is None else ray)
    except ImportError as error:
        remedy = "pip install 'bei-core[ray]'" if error.name == "ray" else "pip install 'bei-core[jobs]'"
        raise ConfigError(f"{error.name} is not installed; {remedy}") from error
    click.echo(report)


def _names(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return kind.__struct_fields__


def _taken(flags: dict[str, object], kind: type[StructT]) -> StructT:
    """The options of a kind among the flags. Raises ConfigError for a value that it refuses."""
    return msgspec.convert({name: value for name, value in given_flags(flags).items() if name in _names(kind)}, kind)
