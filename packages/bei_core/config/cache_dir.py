"""The folder for built engines and fetched checkpoints, if no setting names one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bei_core.errors import ConfigError

# Baseten's network volumes for files written at run time: the organisation's, one deployment's. Either may be absent.
_VOLUMES = (Path("/cache/org"), Path("/cache/model"))


def default_cache_dir(environ: Mapping[str, str], volumes: Sequence[Path] = _VOLUMES) -> Path:
    """The folder `bei` on the first network volume that can be written, else in the user's cache folder.

    Raises ConfigError if there is no volume and the user has no home directory.
    """
    shared = next((volume for volume in volumes if os.access(volume, os.W_OK | os.X_OK)), None)
    if shared is not None:
        return shared / "bei"
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the XDG specification says to ignore a relative path
        return base / "bei"
    try:
        return Path(environ.get("HOME") or Path.home()) / ".cache" / "bei"
    except RuntimeError as fault:
        raise ConfigError("there is no home directory for the cache; set cache_dir (BEI_CACHE_DIR)") from fault
