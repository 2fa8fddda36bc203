"""Flags of a command line, made from declared structs: `Settings`, and the options of `bei bench`."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from bei_core.config.declaration import Declared, declared
from bei_core.config.settings import Settings
from bei_core.logs import configure_logging, is_json_wanted

_TYPES: Mapping[type, click.ParamType[Any]] = {
    bool: click.BOOL,
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(),
}


class Command(click.Command):
    """A command whose boolean flags also take a value, as text-embeddings-inference's do: `--auto-truncate false`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line; returns the words that are no flags, as in the base class.

        A model that is given as a word, as other servers take it, is an error that names the flag.
        """
        switches = {
            spelled: option.secondary_opts[0]
            for option in self.params
            if isinstance(option, click.Option) and option.is_flag and option.secondary_opts
            for spelled in option.opts
        }
        try:
            return super().parse_args(ctx, list(_without_values(args, switches)))
        except click.UsageError as error:
            takes_model = any(each.name == "model_id" for each in self.params)
            if takes_model and "unexpected extra argument" in error.message:
                raise click.UsageError(f"{error.message}; a model is given with --model-id", ctx) from error
            raise


def _without_values(words: Sequence[str], switches: Mapping[str, str]) -> Iterator[str]:
    """The words, with `--x false` and `--x=false` replaced by `--no-x`; `switches` maps each `--x` to its `--no-x`."""
    rest = deque(words)
    while rest:
        word = rest.popleft()
        flag, equals, value = word.partition("=")
        if flag == "--":
            yield from (word, *rest)
            return
        if not equals and rest:
            value = rest[0]
        if flag not in switches or value.lower() not in {"true", "false"}:
            yield word
            continue
        if not equals:
            rest.popleft()
        yield flag if value.lower() == "true" else switches[flag]


class OutputFile(click.Path):
    """A file to write. Refused before any work if it is a folder, or if its folder is not one or cannot be written."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """The path of the file."""
        path = super().convert(value, param, ctx)
        folder = Path(os.fsdecode(path)).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            self.fail(f"{folder} is not a folder in which this user can write.", param, ctx)
        return path


class Choice(click.Choice[str]):
    """One of a setting's values. As in the environment, `-` may stand for `_`, and case is ignored."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        """The form in which choices are compared."""
        return str(choice).lower().replace("-", "_")


def flags_of(kind: type[Struct]) -> list[click.Parameter]:
    """A flag for each field of a struct that has a description."""
    return [_flag(field) for field in declared(kind).values() if field.description]


def settings_flags() -> list[click.Parameter]:
    """A flag for each setting, and `--config` for a config.yaml."""
    config = click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        help="Truss's config.yaml; its model_metadata.bei, or Baseten's trt_llm block, is read.",
    )
    return [config, *flags_of(Settings)]


def given_flags(flags: Mapping[str, object]) -> dict[str, object]:
    """The flags that were given on the command line."""
    return {name: value for name, value in flags.items() if value not in (None, ())}


def load_settings(flags: Mapping[str, object]) -> Settings:
    """The settings of a command with `settings_flags`; also sets up logging. Raises ConfigError."""
    given = given_flags(flags)
    config = given.pop("config", None)
    configure_logging(json_output=is_json_wanted(sys.argv[1:], os.environ))  # for warnings about the settings
    settings = Settings.load(given, os.environ, config if isinstance(config, Path) else None)
    configure_logging(json_output=settings.json_output, level=settings.log_level)
    return settings


def _flag(field: Declared) -> click.Option:
    """The flag of a field. Its default is None, which means that the flag was not given and other sources count."""
    spelled = [*field.flags]
    if field.plain is bool:
        spelled[-1] += f"/--no-{field.name.replace('_', '-')}"
    return click.Option(
        [field.name, *spelled],
        type=_type(field),
        multiple=field.plain is tuple,
        default=None,
        help=help_of(field),
    )


def help_of(field: Declared) -> str:
    """The description of a field with its default, for `--help`."""
    notes = [f"no effect: {field.about.no_effect}"] if field.about.no_effect else []
    notes += [f"default: {field.default_text}"] if field.default_text else []
    return " ".join([field.description, *(f"[{note}]" for note in notes)])


def _type(field: Declared) -> click.ParamType[Any]:
    """The click type of a flag. It checks choices and limits of numbers; `Settings` checks everything else."""
    limits = field.limits
    if field.choices:
        return Choice(field.choices)
    if limits is None:
        return _TYPES.get(field.plain, click.STRING)
    if field.plain is int:
        return click.IntRange(
            None if limits.ge is None else int(limits.ge), None if limits.le is None else int(limits.le)
        )
    least = limits.ge if limits.gt is None else limits.gt
    return click.FloatRange(least, limits.le, min_open=limits.gt is not None)
