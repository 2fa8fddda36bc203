"""Bulk jobs: every row of a data set through a model, in bounded memory; a job that is killed goes on where it stopped.

`embed(source, output, ...)` is `bei embed-dataset` in Python.
"""

from bei_core.jobs.options import JobOptions
from bei_core.jobs.run import Report, embed

__all__ = ["JobOptions", "Report", "embed"]
