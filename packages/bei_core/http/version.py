"""The version of BEI."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def bei_version() -> str:
    """Returns the version of the installed bei-core; "0" if it is only a folder on sys.path, as under Truss."""
    try:
        return version("bei-core")
    except PackageNotFoundError:
        return "0"
