"""The benchmark behind `bei bench`: `run(options)` is the whole of it. It speaks HTTP to any server and knows none."""

from bei_core.bench.client import LoadError
from bei_core.bench.measure import Options, run
from bei_core.bench.report import Report, plot

__all__ = ["LoadError", "Options", "Report", "plot", "run"]
