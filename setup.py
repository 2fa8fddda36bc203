"""Puts model/model.py into built distributions, because `bei truss init` copies it. The rest is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithModel(build_py):
    """Also copies model/model.py to bei_core/truss/, except for an editable install, which has the checkout."""

    def run(self) -> None:
        """Builds the packages."""
        super().run()
        if not self.editable_mode:
            self.copy_file("model/model.py", str(Path(self.build_lib, "bei_core", "truss", "model.py")))


setup(cmdclass={"build_py": BuildWithModel})
