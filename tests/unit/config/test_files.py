"""The files from which settings and keys are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bei_core.config.files import read_yaml
from bei_core.config.keys import read_keys
from bei_core.config.sources import read_key
from bei_core.errors import ConfigError


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="only Unix has such a device")
@pytest.mark.parametrize("read", [read_yaml, read_key, read_keys])
def test_a_file_without_end_is_refused(read: Callable[[Path], object]) -> None:
    """It was read until the memory was full."""
    with pytest.raises(ConfigError, match="/dev/zero has more than 16777216 characters"):
        read(Path("/dev/zero"))
