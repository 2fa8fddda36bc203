"""The `bei models` commands: list, describe and remove what is fetched and built on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from bei_core.config.model_names import at_hub
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError

if TYPE_CHECKING:
    from bei_core.models.spec import ModelSpec
    from bei_core.storage.cache import Entry

_CACHES = (
    click.option("--cache-dir", type=click.Path(path_type=Path), help="BEI's cache. [default: that of BEI_CACHE_DIR]"),
    click.option(
        "--huggingface-hub-cache", type=click.Path(path_type=Path), help="The hub's cache. [default: HF_HUB_CACHE]"
    ),
)


class Local(NamedTuple):
    """A checkpoint or an engine on this machine."""

    source: str  # the name that a model is asked for by
    revision: str
    what: str  # "checkpoint", or an engine's name and precision
    folder: Path
    num_bytes: int
    used_at: float  # seconds since the epoch
    entry: Entry | None = None  # of BEI's cache; None: in huggingface_hub's

    @property
    def line(self) -> str:
        """The parts of one line of the list."""
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used_at))
        state = "in use" if self.entry is not None and self.entry.in_use else f"used {used}"
        return f"{self.source}  {self.revision[:12]}  {self.what}  {self.num_bytes / 1e6:.1f} MB  {state}"


@click.group()
def command() -> None:
    """List, describe and remove the models on this machine."""


def _with_caches(function: click.decorators.FC) -> click.decorators.FC:
    for option in _CACHES:
        function = option(function)
    return function


@command.command("list")
@_with_caches
def list_models(**caches: Path | None) -> None:
    """List checkpoints and engines by the name of their model: revision, size, and when last used."""
    for local in sorted(_found(_settings(caches))):
        click.echo(local.line)


@command.command()
@click.argument("model")
@_with_caches
def show(model: str, **caches: Path | None) -> None:
    """Describe MODEL, a name that `list` shows, a folder or a page of the hub: its kind, its limits, where it lies."""
    from bei_core.checkpoint import Checkpoint
    from bei_core.engines.manifest import SPEC
    from bei_core.models.spec import load_spec, read_spec

    found = _named(model, _settings(caches))
    first = found[0]
    has_spec = (first.folder / SPEC).is_file()
    checkpoint = Checkpoint(first.folder, first.source, first.revision)
    spec = load_spec(first.folder / SPEC) if has_spec else read_spec(checkpoint)
    for name, value in _facts(spec).items():
        click.echo(f"{name}: {value}")
    for local in found:
        click.echo(f"{local.what}: {local.folder} at {local.revision}, {local.num_bytes / 1e6:.1f} MB")


@command.command("rm")
@click.argument("model")
@_with_caches
def remove_model(model: str, **caches: Path | None) -> None:
    """Remove the checkpoints and the engines of MODEL. Those that a server has open stay; it ends with 1 then."""
    from bei_core.checkpoint.hub import remove_repository
    from bei_core.storage.cache import remove

    settings = _settings(caches)
    found = _named(model, settings)
    entries = [local.entry for local in found if local.entry is not None]
    freed = remove_repository(found[0].source, settings.huggingface_hub_cache)
    kept = [entry for entry in entries if not remove(entry)]
    freed += sum(entry.num_bytes for entry in entries if entry not in kept)
    click.echo(f"{freed / 1e6:.1f} MB removed")
    if kept:
        raise ConfigError(f"in use, and not removed: {', '.join(str(entry.folder) for entry in kept)}")


def _settings(caches: dict[str, Path | None]) -> Settings:
    return Settings.load({name: path for name, path in caches.items() if path is not None}, os.environ)


def _found(settings: Settings) -> list[Local]:
    """Everything in the two caches."""
    from bei_core.checkpoint.hub import cached_revisions
    from bei_core.engines.cache import EngineCache

    cache = EngineCache.of(settings)
    entries = [
        (entry, *entry.record.source.rpartition("@")) for entry in (*cache.entries(), *cache.checkpoint_entries())
    ]
    hub = cached_revisions(settings.huggingface_hub_cache)
    return [Local(one.repo, one.commit, "checkpoint", one.folder, one.num_bytes, one.used_at) for one in hub] + [
        Local(source, revision, entry.record.label, entry.folder, entry.num_bytes, entry.used_at, entry)
        for entry, source, _, revision in entries
        if source
    ]


def _named(model: str, settings: Settings) -> Sequence[Local]:
    """What there is of a model, checkpoints first. Raises ConfigError if there is nothing, or for one revision."""
    from bei_core.checkpoint import source_of

    everything = _found(settings)
    repository, revision = at_hub(model, None)
    for source in (model, source_of(str(repository))):
        if found := [local for local in everything if local.source == source]:
            if revision:
                raise ConfigError(f"{model} names one revision; give {source}, which means all of them")
            return sorted(found, key=lambda local: local.what != "checkpoint")
    raise ConfigError(f"there is nothing of {model} on this machine; `bei models list` shows what there is")


def _facts(spec: ModelSpec) -> dict[str, str]:
    """What people want to know of a model, in words."""
    modules = ", ".join(type(module).__name__ for module in spec.modules)
    return {
        "kind": str(spec.kind),
        "architecture": spec.architecture,
        "modules": f"{modules}, Normalize" if spec.normalize else modules,
        "max_input_length": f"{spec.max_seq_len} tokens",
        "prompts": ", ".join(sorted(spec.prompts)) or "none",
        "labels": ", ".join(spec.classifier.labels) if spec.classifier else "none",
    }
