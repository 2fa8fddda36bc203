"""`bei truss`: from a config.yaml for Baseten's BEI to a Truss of ours."""

from __future__ import annotations

from pathlib import Path

import click

from bei_core.engines.registry import ENGINES
from bei_core.errors import ConfigError
from bei_core.truss.init import make


@click.group()
def command() -> None:
    """Make a Truss from a config.yaml for Baseten's BEI."""


@command.command()
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="A config.yaml with Baseten's trt_llm block.",
)
@click.option("--docker-server", is_flag=True, help="Run bei serve in the container, in place of Truss's server.")
@click.option(
    "--cpu", is_flag=True, help="Ask for processors in place of the accelerator; the same as --engine openvino."
)
@click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    help="Engine of the Truss. [default: the first of tensorrt_llm and torch that can serve the model]",
)
@click.option("--force", is_flag=True, help="Overwrite an existing Truss.")
def init(output: Path, source: Path, docker_server: bool, cpu: bool, engine: str, force: bool) -> None:
    """Make a Truss in the folder OUTPUT that serves what a config.yaml with Baseten's trt_llm block describes.

    The model's class is read from its folder, from the Hugging Face hub, or from a table of well-known models. A model
    that no engine can serve is refused.
    """
    made = make(source, output, docker_server=docker_server, cpu=cpu, engine=engine)
    if not force and (output / "config.yaml").exists():
        raise ConfigError(f"{output / 'config.yaml'} exists already; --force overwrites it")
    for name, content in made.files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(content)
    for note in made.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{output}: {len(made.files)} files; next: truss push --promote {output}")
