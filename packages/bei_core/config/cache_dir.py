"""The default of `cache_dir`, the folder for built engines and fetched checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bei_core.errors import ConfigError

# Baseten's network volumes for files written at run time: of the organisation, of one deployment. Both are optional.
_VOLUMES = (Path("/cache/org"), Path("/cache/model"))


def default_cache_dir(environ: Mapping[str, str], volumes: Sequence[Path] = _VOLUMES) -> Path:
    """The folder `bei` on the first volume that can be written; if there is none, in the user's cache folder.

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
