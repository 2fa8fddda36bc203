"""`bei truss`: from a config.yaml for Baseten's BEI to a Truss of ours."""

from __future__ import annotations

from pathlib import Path

import click

from bei_core.config.files import read_yaml
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError
from bei_core.truss.init import make


@click.group()
def command() -> None:
    """Make a Truss from a config.yaml for Baseten's BEI."""


@command.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="A config.yaml with Baseten's trt_llm block.",
)
@click.option("--docker-server", is_flag=True, help="Run bei serve in the container, in place of Truss's server.")
@click.option("--cpu", is_flag=True, help="Ask for 4 processors in place of the accelerator.")
@click.option("--force", is_flag=True, help="Overwrite an existing Truss.")
def init(output: Path, source: Path, docker_server: bool, cpu: bool, force: bool) -> None:
    """Make a Truss in the folder OUTPUT that serves what a config.yaml with Baseten's trt_llm block describes."""
    files = make(source, output, docker_server=docker_server, cpu=cpu)
    if not force and (output / "config.yaml").exists():
        raise ConfigError(f"{output / 'config.yaml'} exists already; --force overwrites it")
    for name, content in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(content)
    for key in _without_effect(source):
        click.echo(f"note: {key} has no effect here", err=True)
    click.echo(f"{output}: {len(files)} files; next: truss push --publish --promote {output}")


def _without_effect(source: Path) -> tuple[str, ...]:
    """The keys of the file's trt_llm block that have no effect here."""
    block = Settings.from_truss_config({"trt_llm": read_yaml(source)["trt_llm"]}, {}).trt_llm
    return () if block is None else tuple(f"trt_llm.{key}" for key in block.ignored())
