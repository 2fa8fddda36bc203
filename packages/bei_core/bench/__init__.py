"""The benchmark behind `bei bench`: `run(options)` returns a report. It measures any server over HTTP."""

from bei_core.bench.client import LoadError
from bei_core.bench.measure import Options, run
from bei_core.bench.report import Report, plot

__all__ = ["LoadError", "Options", "Report", "plot", "run"]
