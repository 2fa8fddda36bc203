"""Reads values of transformers' config.json by name, and refuses those that no model can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bei_core.errors import CheckpointError, UnsupportedModelError

Config = Mapping[str, Any]  # the content of config.json

MAX_SIZE, MAX_LAYERS = 1 << 24, 1 << 12  # larger numbers are mistakes, and would cost memory
MAX_NUMBER = 1e30  # larger ones would be infinite in f32


def read_setting(config: Config, name: str, *others: str) -> Any:  # noqa: ANN401
    """Returns the value of the first of these keys. Raises UnsupportedModelError if config.json has none of them."""
    for known in (name, *others):
        if config.get(known) is not None:
            return config[known]
    raise UnsupportedModelError(f"config.json has no `{name}`")


def read_size(
    config: Config, name: str, *others: str, default: int | None = None, least: int = 1, most: int = MAX_SIZE
) -> int:
    """Returns the size under the first of these keys. Raises UnsupportedModelError unless it is `least` to `most`."""
    given = {known: config[known] for known in (name, *others) if config.get(known) is not None}
    if not given and default is not None:
        return default
    value = read_setting(config, name, *others)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UnsupportedModelError(
            f"config.json: {next(iter(given))} {value!r} is not a whole number from {least} to {most}"
        )
    return value


def read_number(config: Config, name: str, default: float) -> float:
    """Returns a number of config.json; the default if it is missing or null.

    Raises UnsupportedModelError for others.
    """
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
        raise UnsupportedModelError(f"config.json: {name} {value!r} is not a number up to {MAX_NUMBER:g}")
    return float(value)


def read_whole(config: Config, name: str, *, most: int = (1 << 31) - 1) -> int:
    """Returns a whole number of config.json, which may be below 0; 0 if it is missing, null or false.

    Raises UnsupportedModelError for others, and for one above `most`.
    """
    if config.get(name) is False:
        return 0
    return read_size(config, name, default=0, least=-MAX_SIZE, most=most)


def architecture_of(config: Config) -> str:
    """Returns the name of the model's class. Raises CheckpointError if config.json has none."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not names:
        raise CheckpointError(
            'config.json has no `architectures`; add the class that the weights belong to, such as ["BertModel"]'
        )
    return str(names[0])
