"""The files from which a Truss gets settings: its config.yaml, and the secrets that Baseten mounts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bei_core.errors import ConfigError

SECRETS = Path("/secrets")  # one file for each secret; the file's name is the secret's

_MAX_CHARS = 16_777_216  # of a file; a device such as /dev/zero has no end


def read_text(path: Path) -> str:
    """The text of a file. Raises OSError, UnicodeDecodeError, and ConfigError for more than 16 million characters."""
    with path.open(encoding="utf-8") as file:
        text = file.read(_MAX_CHARS + 1)
    if len(text) > _MAX_CHARS:
        raise ConfigError(f"{path} has more than {_MAX_CHARS} characters, so it is not a file of settings")
    return text


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file. Raises ConfigError if it cannot be read or is not a mapping.

    The error has the place of a mistake and nothing of the file's text, which may be a secret.
    """
    import yaml

    try:
        text = read_text(path)
        config = yaml.safe_load(text)
    except OSError as fault:
        raise ConfigError(f"cannot read {path}: {fault.strerror}") from fault
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{path} is not YAML: byte {fault.start} is not UTF-8") from None
    except yaml.YAMLError as fault:
        raise ConfigError(f"{path} is not YAML at {_place_of(fault, text)}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply; close each bracket that it opens") from None
    except (ValueError, LookupError, AttributeError):  # such as the date 2024-02-31, or `!!bool x`
        what = "a date, number or value with a tag does not exist"
        raise ConfigError(f"{path} is not YAML: {what}; write it in quotes") from None
    if config is not None and not isinstance(config, dict):
        raise ConfigError(f"{path} must be a mapping of keys, such as `name: value`")
    return config or {}


def _place_of(fault: Exception, text: str) -> str:
    """The line and column of a mistake in YAML, and of the beginning of the value that contains it."""
    marks = (getattr(fault, "problem_mark", None), getattr(fault, "context_mark", None))
    places = [f"line {mark.line + 1}, column {mark.column + 1}" for mark in marks if mark is not None]
    if not places:  # a character that YAML does not allow
        before = text[: getattr(fault, "position", 0)]
        places = [f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"]
    place, *begin = dict.fromkeys(places)
    return f"{place} (the value begins at {begin[0]})" if begin else place


def read_secret(name: str) -> str:
    """The value of a secret that Baseten mounts as a file. Raises OSError if there is none, and as `read_text`."""
    return read_text(SECRETS / name)
