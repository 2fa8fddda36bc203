"""The files from which a Truss gets settings: its config.yaml, and the secrets that Baseten mounts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bei_core.errors import ConfigError

SECRETS = Path("/secrets")  # one file for each secret; the file's name is the secret's


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The content of a config.yaml. Raises ConfigError if it cannot be read or is not a mapping."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise ConfigError(f"cannot read {path}: {fault.strerror}") from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path} is not YAML: {fault}") from fault
    if config is not None and not isinstance(config, dict):
        raise ConfigError(f"{path} must be a mapping of keys, as Truss's config.yaml is")
    return config or {}


def read_secret(name: str) -> str:
    """The value of a secret that Baseten mounts as a file. Raises OSError if there is none."""
    return (SECRETS / name).read_text(encoding="utf-8")
