"""`bei embed-dataset`."""

from __future__ import annotations

from collections.abc import Mapping

import click
import msgspec

from bei_core.cli.flags import Command, flags_of, load_settings, one_model, settings_flags
from bei_core.errors import ConfigError
from bei_core.jobs.options import JobOptions


@click.command(cls=Command, params=[*flags_of(JobOptions), *settings_flags()])
@click.argument("source", metavar="INPUT")
@click.option("--output", required=True, help="Folder or URL of a folder; a job that was stopped there goes on.")
def command(source: str, output: str, **flags: object) -> None:
    """Run each row of INPUT through a model and write Parquet files.

    INPUT is a file, a folder or a glob of Parquet, Arrow, JSON lines, CSV or text: a path, a URL of an object store, or
    hf://datasets/OWNER/NAME/... A reranker, classifier, SPLADE or ColBERT model writes its own columns.
    """
    options, settings = _options(flags), one_model(load_settings(_without_options(flags)))
    try:
        from bei_core.jobs import embed
    except ImportError as error:
        raise ConfigError("bei embed-dataset needs pyarrow; pip install 'bei-core[jobs]'") from error
    click.echo(embed(source, output, settings=settings, options=options))


def _options(flags: Mapping[str, object]) -> JobOptions:
    given = {name: flags[name] for name in JobOptions.__struct_fields__ if flags.get(name) not in (None, ())}
    return msgspec.convert(given, JobOptions)


def _without_options(flags: Mapping[str, object]) -> Mapping[str, object]:
    return {name: value for name, value in flags.items() if name not in JobOptions.__struct_fields__}
