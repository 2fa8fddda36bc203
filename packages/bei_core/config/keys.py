"""A file of API keys: for each name its key and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from bei_core.config.convert import is_unicode, public_part
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
    given, where = read_yaml(path), f"api_keys_file {path}"
    for name, value in given.items():
        if isinstance(value, dict) and not value.keys() <= set(ApiKey.__struct_fields__):
            known = ", ".join(ApiKey.__struct_fields__)  # the unknown field may be `key:SECRET`, without a space
            name = public_part(str(name))
            raise ConfigError(f"{where}: {name} has a field other than {known}; a line of it would be {EXAMPLE}")
    try:
        keys = msgspec.convert(dict(given), dict[str, ApiKey])
    except msgspec.ValidationError as fault:
        raise ConfigError(f"{where}: {fault}; a line of it would be {EXAMPLE}") from None
    if not keys:
        raise ConfigError(f"{where} has no key; a line of it would be {EXAMPLE}")
    for name, key in keys.items():
        check_key(key.key, f"{where}: the key of {public_part(name)}")
    if len({key.key.strip() for key in keys.values()}) < len(keys):
        raise ConfigError(f"{where} gives one key two names")
    return keys


def check_key(key: str, where: str) -> None:
    """Raises ConfigError for a key that no request can have: one of spaces only, or with half of a character."""
    if not key.strip():
        raise ConfigError(f"{where} has nothing but spaces; give it a value, or remove it")
    if not is_unicode(key):
        raise ConfigError(f"{where} has half of a character; give it another value")


def check_given(api_key: str | None) -> None:
    """Raises ConfigError if config.yaml declares the secret of the key, and it has no value: anyone could call."""
    if api_key == "":
        raise ConfigError("config.yaml declares the secret api_key, which has no value; give it one, or remove it")
