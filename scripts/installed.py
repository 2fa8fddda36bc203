"""Prints how many packages the environment of this interpreter has, and the size of their files."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def size(distribution: Distribution) -> int:
    """The bytes of the files of a package that are there."""
    paths = (Path(str(file.locate())) for file in distribution.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    found = list(distributions())
    print(f"{sys.prefix}: {len(found)} packages, {sum(map(size, found)) / 1e6:,.0f} MB")
