"""Settings from their sources: secrets, Baseten's `trt_llm` block, config.yaml, the environment and flags.

Each source becomes one layer, a mapping of setting to value. `merge` lays them over each other, the weakest first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from bei_core.config.cache_dir import default_cache_dir
from bei_core.config.convert import unknown, value_of
from bei_core.config.declaration import Declared
from bei_core.config.files import read_text
from bei_core.config.foreign import is_foreign
from bei_core.config.keys import check_key, read_keys
from bei_core.config.trt_llm import TrtLlm
from bei_core.errors import ConfigError

log = logging.getLogger(__name__)

Declarations: TypeAlias = Mapping[str, Declared]
Layer: TypeAlias = Mapping[str, object]


def collect(
    known: Declarations,
    config: Mapping[str, Any],
    environ: Mapping[str, str],
    flags: Layer,
    secrets: Mapping[str, str],
) -> dict[str, Any]:
    """The merged values of all sources. `config` is a whole config.yaml, `secrets` has the secrets it declares."""
    layers = [
        from_values(known, block_of(known, config), "model_metadata.bei.{}".format),
        from_environ(known, environ),
        from_values(known, flags, lambda name: f"--{name.replace('_', '-')}"),
    ]
    trt_llm = merge(known, layers).get("trt_llm")
    if isinstance(trt_llm, TrtLlm):  # every setting that is given by itself wins over the block
        layers.insert(0, trt_llm.settings())
    layers.insert(0, from_secrets(known, secrets, trt_llm))
    merged = merge(known, layers)
    _check_variables(known, environ, merged)
    if "api_key_file" in merged:
        merged["api_key"] = read_key(merged["api_key_file"])
    elif merged.get("api_key"):
        check_key(merged["api_key"], "api_key")
    if "api_keys_file" in merged:
        read_keys(Path(merged["api_keys_file"]))  # so that a mistake in it is known before anything is built
    if "cache_dir" not in merged:
        merged["cache_dir"] = default_cache_dir(environ)
    return merged


def merge(known: Declarations, layers: Iterable[Layer]) -> dict[str, Any]:
    """One value for each setting. A later layer wins, and removes earlier settings that its own exclude.

    Raises ConfigError if one layer has two settings that exclude each other.
    """
    pairs = [(setting.name, other) for setting in known.values() for other in setting.about.excludes]
    merged: dict[str, Any] = {}
    for layer in layers:
        for one, other in pairs:
            if one in layer and other in layer:
                raise ConfigError(f"{other} and {one} exclude each other; give one of them")
        replaced = {name for pair in pairs if not layer.keys().isdisjoint(pair) for name in pair}
        chosen, before = _models_of(layer), _models_of(merged)
        if chosen and before and chosen != before:
            replaced.add("revision")  # it was given for the earlier layer's model
        merged = {**{name: value for name, value in merged.items() if name not in replaced}, **layer}
    return merged


def _models_of(layer: Layer) -> Layer:
    """The settings of a layer that name models."""
    return {name: layer[name] for name in ("model_id", "models") if name in layer}


def from_values(known: Declarations, values: Layer, label: Callable[[str], str]) -> dict[str, object]:
    """The layer of values that are not text. None counts as unset; `label` gives a setting's name for errors."""
    layer = {}
    for name, value in values.items():
        if name not in known:
            raise unknown("setting", label(str(name)), [label(each) for each in known])
        if value is not None:
            where = "trt_llm" if name == "trt_llm" else label(name)
            layer[name] = value_of(known[name], value, where, strict=True)
    return layer


def from_environ(known: Declarations, environ: Mapping[str, str]) -> dict[str, object]:
    """The layer of the environment. An empty variable counts as unset, because compose files often have them.

    Raises ConfigError for an unknown name after `BEI_`.
    """
    given = {name: value for name, value in environ.items() if value and not is_foreign(name, value)}
    ours = {setting.variables[0] for setting in known.values()}
    for name in given:
        if name.startswith("BEI_") and name not in ours:
            raise unknown("environment variable", name, ours)
    layer = {}
    for setting in known.values():
        source = next((name for name in setting.variables if name in given), None)
        if source is not None:
            layer[setting.name] = value_of(setting, given[source], f"environment variable {source}", strict=False)
    return layer


def _check_variables(known: Declarations, environ: Mapping[str, str], merged: Layer) -> None:
    """Raises ConfigError for an empty variable with a key of callers, unless there is one: it would open the server."""
    keys = [setting for setting in known.values() if setting.about.refuse_empty]
    if any(merged.get(setting.name) for setting in keys):
        return
    for name in (name for setting in keys for name in setting.variables if environ.get(name) == ""):
        raise ConfigError(f"environment variable {name} is set and empty; give it a value, or remove it")


def read_secrets(declared: Iterable[str], read: Callable[[str], str]) -> dict[str, str]:
    """The values of the secrets that config.yaml declares; empty, with a line in the log, for those without a value."""
    found = {}
    for name in declared:
        found[name] = ""
        try:
            found[name] = read(name).strip()  # it may come from a file that ends with a new line
        except Exception:  # truss's SecretNotFoundError is not a KeyError and can be imported in its server only
            log.warning("config.yaml declares the secret %s, which has no value", name)
    return found


def from_secrets(known: Declarations, secrets: Mapping[str, str], trt_llm: object) -> dict[str, object]:
    """The layer of Truss's secrets. The trt_llm block may name another secret for the checkpoint.

    An empty one counts as unset, but for the key of callers: it stays empty, and no server starts with it.
    """
    names = {one.name: [*one.about.mounted, one.name] for one in known.values() if one.about.secret}
    if isinstance(trt_llm, TrtLlm):
        setting, name = trt_llm.build.checkpoint_repository.secret
        names[setting].insert(0, name)
    layer: dict[str, object] = {}
    for setting, candidates in names.items():
        values = [secrets[name] for name in candidates if name in secrets]
        if any(values):
            layer[setting] = next(value for value in values if value)
        elif values and known[setting].about.refuse_empty:
            layer[setting] = ""
    return layer


def block_of(known: Declarations, config: Mapping[str, Any]) -> dict[str, object]:
    """The mapping model_metadata.bei of a Truss config, with the `trt_llm` block, which may also be at the top."""
    misplaced = sorted(set(config) & (set(known) - {"trt_llm"}))
    if misplaced:
        raise ConfigError(
            f"put {', '.join(misplaced)} under model_metadata.bei; the top level of config.yaml is Truss's"
        )
    metadata = config.get("model_metadata") or {}
    block = (metadata.get("bei") or {}) if isinstance(metadata, Mapping) else metadata
    if not isinstance(block, Mapping):
        raise ConfigError("model_metadata.bei must be a mapping of settings")
    top = config.get("trt_llm")
    if top is not None and block.get("trt_llm") is not None:
        raise ConfigError("trt_llm is at the top level and under model_metadata.bei; keep one of them")
    return {**block, "trt_llm": top} if top is not None else dict(block)


def read_key(path: Path) -> str:
    """The API key in a file, without the newline at its end. Raises ConfigError if the file is missing or blank."""
    try:
        key = read_text(path).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read api_key_file {path}: {reason}") from fault
    if not key.strip():
        raise ConfigError(f"api_key_file {path} is empty or has nothing but spaces; write the key into it")
    return key
