"""A file of API keys: for each name its key and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from bei_core.config.files import read_yaml
from bei_core.errors import ConfigError

Count = Annotated[int, Meta(ge=1)]

EXAMPLE = "search: {key: a-long-random-text, requests_per_minute: 600, max_concurrent_requests: 32}"


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's key and what it may ask at most; None: no limit of its own."""

    key: Annotated[str, Meta(min_length=1)]
    requests_per_minute: Count | None = None
    max_concurrent_requests: Count | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"ApiKey(***, {self.requests_per_minute}, {self.max_concurrent_requests})"


def read_keys(path: Path) -> dict[str, ApiKey]:
    """The keys of a YAML file by their names. Raises ConfigError, which never has a key in it."""
    try:
        keys = msgspec.convert(dict(read_yaml(path)), dict[str, ApiKey])
    except msgspec.ValidationError as fault:
        raise ConfigError(f"api_keys_file {path}: {fault}; a line of it would be {EXAMPLE}") from None
    if not keys:
        raise ConfigError(f"api_keys_file {path} has no key; a line of it would be {EXAMPLE}")
    if not all(key.key.strip() for key in keys.values()):
        raise ConfigError(f"api_keys_file {path} has a key of spaces")
    if len({key.key.strip() for key in keys.values()}) < len(keys):
        raise ConfigError(f"api_keys_file {path} gives one key two names")
    return keys
