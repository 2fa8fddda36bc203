"""Measurements that are saved as a JSON file and read again."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from bei_core.errors import ConfigError

SavedT = TypeVar("SavedT", bound="Saved")


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """Base of measurements that `bei bench` writes. `called` says what they are, for errors."""

    called: ClassVar[str]

    def write(self, path: Path) -> None:
        """Writes the measurements as JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def read(cls: type[SavedT], path: Path) -> SavedT:
        """Reads what `write` wrote. Raises ConfigError if the file has something else."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{path} is not {cls.called}: {error}") from error
