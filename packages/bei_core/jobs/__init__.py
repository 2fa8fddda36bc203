"""Bulk jobs: run every row of a data set through a model, in bounded memory; a job that was killed can be resumed.

`embed(source, output, ...)` is `bei embed-dataset` in Python. It is imported on first use, because it needs pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bei_core.jobs.options import JobOptions, RayOptions

if TYPE_CHECKING:
    from bei_core.jobs.run import embed

__all__ = ["JobOptions", "RayOptions", "embed"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "embed":
        from bei_core.jobs.run import embed

        return embed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
