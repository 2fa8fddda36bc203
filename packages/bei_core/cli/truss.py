"""`bei truss`: from a config.yaml for Baseten's BEI to a Truss of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bei_core.config.files import read_yaml
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError
from bei_core.truss.init import make

app = typer.Typer(no_args_is_help=True, help=__doc__)


@app.callback()
def _group() -> None:
    """Makes `init` a word of its own, where typer would run a group's only command without it."""


@app.command()
def init(
    output: Annotated[Path, typer.Argument(help="folder to make")],
    source: Annotated[Path, typer.Option("--from", help="a config.yaml with Baseten's trt_llm block")],
    docker_server: Annotated[bool, typer.Option("--docker-server", help="run bei serve, not Truss's server")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="4 processors in place of the accelerator")] = False,
    force: Annotated[bool, typer.Option("--force", help="write over a Truss that is there")] = False,
) -> None:
    """Make a Truss that serves what a config.yaml with Baseten's trt_llm block describes."""
    files = make(source, output, docker_server=docker_server, cpu=cpu)
    if not force and (output / "config.yaml").exists():
        raise ConfigError(f"{output / 'config.yaml'} is there already; --force writes over it")
    for name, content in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(content)
    for key in _without_effect(source):
        typer.echo(f"note: {key} has no effect here", err=True)
    typer.echo(f"{output}: {len(files)} files; next: truss push --publish --promote {output}")


def _without_effect(source: Path) -> tuple[str, ...]:
    block = Settings.from_truss_config({"trt_llm": read_yaml(source)["trt_llm"]}, {}).trt_llm
    return () if block is None else tuple(f"trt_llm.{key}" for key in block.ignored())
