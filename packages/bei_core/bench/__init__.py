"""The benchmark behind `bei bench`: `run(options)` returns a report. It measures any server over HTTP."""

from bei_core.bench.client import LoadError
from bei_core.bench.measure import Options, run
from bei_core.bench.report import Report, plot
from bei_core.bench.sweep import plot_sweep, sweep

__all__ = ["LoadError", "Options", "Report", "plot", "plot_sweep", "run", "sweep"]
