"""The version of BEI."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def bei_version() -> str:
    """The version of the installed bei-core; "0" if it is not installed but a folder on the path, as under Truss."""
    try:
        return version("bei-core")
    except PackageNotFoundError:
        return "0"
