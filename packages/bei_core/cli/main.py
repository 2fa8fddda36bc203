"""The `bei` command: serve, build, engines, embed, bench, doctor, truss."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Optional

import msgspec
import typer

from bei_core.bench import Options, plot
from bei_core.bench import run as run_bench
from bei_core.cli.engines import app as engines_app
from bei_core.cli.truss import app as truss_app
from bei_core.config.settings import Settings
from bei_core.errors import BeiError, ConfigError
from bei_core.logs import configure_logging

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(engines_app, name="engines")
app.add_typer(truss_app, name="truss")

# A field's trailing comment in the source, `name: type = default  # comment`, is its help text.
_COMMENT = re.compile(r"^    (\w+): .*?  # (.*)$", re.MULTILINE)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command(settings, ...)` as a command line with a flag for every setting, and `--config` for a config.yaml."""
    config = _option("config", Path, "a Truss config.yaml; its model_metadata.bei (or Baseten's trt_llm) is read")

    def parse(values: dict[str, Any]) -> Settings:
        settings = Settings.load(values, os.environ, values.pop("config"))
        configure_logging(json_output=settings.json_output)
        return settings

    return _with_flags(command, [config, *_flags(Settings)], parse)


def with_options(kind: type[msgspec.Struct]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`command(options, ...)` as a command line with a flag for every field of `kind`."""

    def parse(values: dict[str, Any]) -> object:
        return msgspec.convert({name: value for name, value in values.items() if value is not None}, kind)

    return lambda command: _with_flags(command, _flags(kind), parse)


def _with_flags(
    command: Callable[..., None], flags: list[inspect.Parameter], parse: Callable[[dict[str, Any]], object]
) -> Callable[..., None]:
    """`command` with `flags` for its first parameter, which `parse` makes of their values."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    def run(**values: Any) -> None:  # noqa: ANN401 - typer checks them
        rest = {parameter.name: values.pop(parameter.name) for parameter in own}
        command(parse(values), **rest)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    parameters = [*own, *flags]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _flags(kind: type[msgspec.Struct]) -> list[inspect.Parameter]:
    """A flag for each field that a command line can give."""
    help_of = dict(_COMMENT.findall(inspect.getsource(kind)))
    fields = [field for field in msgspec.structs.fields(kind) if field.type not in _NO_FLAG]
    return [_flag(field, help_of.get(field.name, "")) for field in fields]


_NO_FLAG = (list[int], tuple[str, ...])
_REPEATED = {"models": ("--model", "--models")}  # given once for each value


def _flag(field: msgspec.structs.FieldInfo, help_text: str) -> inspect.Parameter:
    kind = str(field.type)
    of: Any = next((of for of in (bool, int, float) if of.__name__ in kind and "Literal" not in kind), str)
    if field.name in _REPEATED:
        of = list[str]
    default = field.default
    shown = "" if default in (None, (), "", msgspec.NODEFAULT) else f" [default: {default}]"
    return _option(field.name, of, help_text + shown)


def _option(name: str, of: Any, help_text: str) -> inspect.Parameter:  # noqa: ANN401 - a type, or a list of one
    spelled = _REPEATED.get(name, ())
    annotation: Any = Annotated[Optional[of], typer.Option(*spelled, help=help_text, show_default=False)]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@app.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve a model over HTTP, or several; a checkpoint is built into an engine first."""
    from bei_core.http.server import serve as serve_http
    from bei_core.http.traces import open_traces
    from bei_core.serving.service import Service

    traces = open_traces(settings)  # before an engine is built, so that what is missing is said at once
    serve_http(Service.open_all(settings), traces)


@app.command()
@with_settings
def build(
    settings: Settings,
    output: Annotated[Optional[Path], typer.Option(help="folder to write; without it, the cache")] = None,  # noqa: UP045
) -> None:
    """Build a self-contained engine folder for each model, and print where it is."""
    from bei_core.engines.open import build_engine

    for one in settings.each() if output is None else [_only(settings)]:
        typer.echo(build_engine(one, output))


@app.command()
@with_settings
def embed(
    settings: Settings,
    texts: Annotated[list[str], typer.Argument(help="texts; `-` reads one a line from standard input")],
) -> None:
    """Embed texts without a server; one JSON list a line."""
    import asyncio

    from bei_core.serving.service import Service
    from bei_core.tasks import Embed

    lines = [line.rstrip("\n") for line in sys.stdin] if texts == ["-"] else texts
    service = Service.open(_only(settings))
    try:
        for row in asyncio.run(service.run(Embed(lines, service.encoding()))).rows:
            typer.echo(json.dumps(row.tolist()))
    finally:
        service.close()


@app.command()
@with_options(Options)
def bench(
    options: Options,
    output: Annotated[Optional[Path], typer.Option(help="file to write the report to, as JSON")] = None,  # noqa: UP045
    plot_to: Annotated[Optional[Path], typer.Option(help="picture to draw of it; needs bei-core[bench]")] = None,  # noqa: UP045
) -> None:
    """Measure a server that is running: throughput, latency, CPU time a request."""
    report = run_bench(options)
    typer.echo(report)
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / "report.json"
        report.write(path)
        if plot_to is not None:
            plot([path], plot_to)


@app.command()
def doctor() -> None:
    """Say what this machine can run, and with which versions."""
    from bei_core.engines.openvino.engine import precision_for, usable_cpus
    from bei_core.engines.registry import choose, find_gpu
    from bei_core.http.routes import bei_version

    gpu = find_gpu()
    facts = {
        "bei": bei_version(),
        "python": sys.version.split()[0],
        "openvino": version("openvino"),
        "processors": usable_cpus(),
        "precision of dtype auto": precision_for("auto"),
        "gpu": "none" if gpu is None else f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}",
        "engine of auto": choose("auto"),
        "cache": Settings.load({}, os.environ).cache_dir,
    }
    for name, value in facts.items():
        typer.echo(f"{name:<24} {value}")


def _only(settings: Settings) -> Settings:
    """The settings of the one model that there is. Raises ConfigError where there are several."""
    first, *others = settings.each()
    if others:
        raise ConfigError(f"{len(others) + 1} models are given, and this takes one")
    return first


def main() -> None:
    """Runs the command line; an error made on purpose is one line, without a traceback."""
    try:
        app(standalone_mode=True)
    except BeiError as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
