"""Checks that an engine for GPUs is correct, and measures its speed. It needs a supported GPU, and the package
tensorrt_llm for `--engine tensorrt_llm`. It needs no network.

    python scripts/gpu_selfcheck.py --engine torch|tensorrt_llm [--quick] [--models NAME,NAME=FOLDER] [--peer NAME=URL]

Measures the card; compares every family with transformers (golden checkpoints, in f32 and bf16); measures models of
real size with random weights that are made here (or a checkpoint in FOLDER, with its fp8 quality gate) in bf16 and fp8,
alone and by `bei serve`; measures running servers named by `--peer`, and transformers and sentence-transformers if they
are installed. Every unit runs in a process of its own. The report, with the clocks and the power of the card, is
written again after each result, to benchmarks/results/gpu-<engine>-<card>.{md,json}. The exit status is 1 if a check
fails. `--quick` ends within 9 minutes; units for which no time is left are listed.

`--shim` runs without a GPU, on torch's own kernels or the tests' stand-in for tensorrt_llm, to test the script itself,
and writes to build/gpu_selfcheck.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[1]
SHIMS = ROOT / "tests" / "gpu_path" / "shims"
sys.path[:0] = [str(ROOT), str(ROOT / "packages")]

from bei_core.engines.tensorrt_llm._compat import check_version  # noqa: E402
from bei_core.errors import EngineUnavailableError  # noqa: E402
from scripts.gpu import models, units  # noqa: E402
from scripts.gpu.report import BEGINS, PARITY, Findings, Result  # noqa: E402

MODELS = "bert-large,xlm-r-568m,mistral-7b"
QUICK_S, UNIT_S = 9 * 60 - 20.0, 1800.0  # 20 seconds to end the last unit and to write the report


def main() -> int:
    """Runs the self-check; returns the exit status, which is 0 if every check passed."""
    options = read_options()
    if options.shim and options.engine == "tensorrt_llm":
        sys.path.insert(0, str(SHIMS))
    if options.unit is not None:
        for result in units.run(options.unit, options, options.folder):
            print(msgspec.json.encode(result).decode(), flush=True)
        return 0
    gpu = find_gpu(shim=options.shim, engine=options.engine)
    with tempfile.TemporaryDirectory(prefix="bei-selfcheck-", dir=options.folder) as temporary:
        findings = check(options, Findings(card=gpu, has_gpu=not options.shim, versions=versions()), Path(temporary))
    for result in findings.failed:
        print(f"FAILED {result.what}: {result.figures}")
    for result in findings.skipped:
        print(f"NOT RUN {result.what}: {result.skipped}")
    print(findings.summary())
    return int(bool(findings.failed))


def read_options() -> argparse.Namespace:
    """Returns the options of the command line, with those that follow from them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("torch", "tensorrt_llm"), default="tensorrt_llm")
    parser.add_argument("--quick", action="store_true", help="end within 9 minutes")
    parser.add_argument("--models", default=MODELS, help=f"names of {', '.join(models.CONFIGS)}, or NAME=FOLDER")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL", help="a running server to measure")
    parser.add_argument("--every", action="store_true", help="check every golden checkpoint, not one of each kind")
    parser.add_argument("--requests", type=int, help="number for each workload and server")
    parser.add_argument("--folder", type=Path, help="where to keep models meanwhile; 7B models need 45 GB")
    parser.add_argument("--shim", action="store_true", help="run without a GPU, to test this script")
    parser.add_argument("--unit", help=argparse.SUPPRESS)  # given to the process of a unit
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)  # the number of its first check
    options = parser.parse_args()
    options.folders = dict(each.split("=", 1) for each in options.models.split(",") if "=" in each)
    options.models = [each.partition("=")[0] for each in options.models.split(",")]
    options.peers = dict(each.split("=", 1) for each in options.peer)
    unknown = [name for name in options.models if name not in {*options.folders, *models.CONFIGS}]
    if unknown:
        parser.error(
            f"unknown models: {', '.join(unknown)}; known are {', '.join(models.CONFIGS)}, or give NAME=FOLDER"
        )
    is_short = options.quick or options.shim
    options.rounds, options.calib_size = (1 if options.shim else 10), (32 if is_short else 512)
    options.requests = options.requests or (64 if options.shim else 2000 if options.quick else 8000)
    options.paths = [str(ROOT / "packages"), *([str(SHIMS)] if options.shim else [])]
    return options


def find_gpu(*, shim: bool, engine: str = "tensorrt_llm") -> str:
    """Returns the name of the first GPU, or "no GPU" with --shim.

    Exits if torch finds no GPU, or if --shim does not fit the installed tensorrt_llm.
    """
    if engine == "tensorrt_llm":
        check_stand_in(shim=shim)
    torch = importlib.import_module("torch")
    if shim:
        return "no GPU"
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; to test this script without one, use --shim")
    return str(torch.cuda.get_device_name(0))


def check_stand_in(*, shim: bool) -> None:
    """Exits if tensorrt_llm cannot be used here, or if --shim does not fit the installed one."""
    try:
        check_version()
    except EngineUnavailableError as error:
        raise SystemExit(str(error)) from error
    is_shim = hasattr(importlib.import_module("tensorrt_llm"), "IS_SHIM")
    if is_shim != shim:
        raise SystemExit(
            "tensorrt_llm is the stand-in: use --shim" if is_shim else "tensorrt_llm is installed: do not use --shim"
        )


def check(options: argparse.Namespace, findings: Findings, temporary: Path) -> Findings:
    """Runs all units, prints each result at once and writes the report after it; returns all results."""
    folder = ROOT / "build" / "gpu_selfcheck" if options.shim else ROOT / "benchmarks" / "results"
    name = f"gpu-{options.engine}-" + re.sub(r"\W+", "-", findings.card).strip("-").lower()
    until = time.monotonic() + (QUICK_S if options.quick else float("inf"))
    for unit in units.names(options):
        for result in run_unit(unit, min(UNIT_S, until - time.monotonic()), temporary):
            outcome = f"not run: {result.skipped}" if result.skipped else "" if result.passed is None else result.passed
            print(f"{unit}: {result.what} {result.figures} {outcome}", flush=True)
            findings.results.append(msgspec.structs.replace(result, unit=unit))
            findings.write(folder, name)
    print(f"written: {folder / name}.md")
    return findings


def run_unit(unit: str, limit_s: float, folder: Path) -> Iterator[Result]:
    """Runs a unit in a process of its own and yields its results, and one more with its time and the card's figures.

    If a kernel ends the process in one of several checks, another process runs the checks after it.
    """
    until, start = time.monotonic() + limit_s, 0
    while True:
        if (left := until - time.monotonic()) <= 0:
            yield Result(section="Units", what=unit, skipped="no time was left")
            return
        process = UnitProcess([*sys.argv, "--unit", unit, "--folder", str(folder), "--start", str(start)], folder)
        yield from process.results(left)
        if not process.is_aborted:
            yield process.end(unit, limit_s)
            return
        yield Result(section=PARITY, what=process.current, figures={"error": process.error()}, passed=False)
        start += process.num_results + 1


class UnitProcess:
    """The process of a unit."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._command, self._folder = [sys.executable, *arguments], folder
        self._status, self._started, self._is_late = 0, time.monotonic(), False
        self._card: dict[str, str] = {}
        self.num_results, self.current = 0, ""  # the check that runs, "" if the unit names none

    def results(self, limit_s: float) -> Iterator[Result]:
        """Runs the process, for at most `limit_s` seconds, and yields its results."""
        with (
            (self._folder / "errors.txt").open("w", encoding="utf-8") as errors,
            watch_card(self._folder) as self._card,
        ):
            options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
            with subprocess.Popen(self._command, start_new_session=True, **options) as process:
                timer = threading.Timer(limit_s, self._end_late, [process.pid])
                timer.start()
                try:
                    yield from self._read(process.stdout or ())
                    self._status = process.wait()
                finally:
                    timer.cancel()
                    _end(process.pid)  # what it started, too

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        for line in lines:
            if line.startswith(BEGINS):
                self.current = line.removeprefix(BEGINS).strip()
            elif line.startswith("{"):
                self.num_results, self.current = self.num_results + 1, ""
                yield msgspec.json.decode(line, type=Result)

    def _end_late(self, pid: int) -> None:
        self._is_late = True
        _end(pid)

    @property
    def is_aborted(self) -> bool:
        """Whether the process ended, not by us, in a check that has a name."""
        return self._status != 0 and not self._is_late and bool(self.current)

    def error(self) -> str:
        """Returns the status and the last line of the errors."""
        lines = (self._folder / "errors.txt").read_text(encoding="utf-8").splitlines()
        return " ".join([f"status {self._status}", *[line for line in lines if line.strip()][-1:]])[:300]

    def end(self, unit: str, limit_s: float) -> Result:
        """Returns the row of the unit. It is a failed check if the process failed or took longer than allowed."""
        figures = {"seconds": f"{time.monotonic() - self._started:.0f}", **self._card}
        if self._status == 0:
            return Result(section="Units", what=unit, figures=figures)
        error = self.error()
        skipped = "not installed" if "ModuleNotFoundError" in error else ""
        if self._is_late and limit_s < UNIT_S:
            skipped = "not finished, because no time was left"
        figures |= {} if skipped else {"result": error}
        return Result(section="Units", what=unit, figures=figures, passed=None if skipped else False, skipped=skipped)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def watch_card(folder: Path) -> Iterator[dict[str, str]]:
    """Yields a dict that gets clocks and power of the first GPU at the end of the block, if there is nvidia-smi."""
    figures: dict[str, str] = {}
    if shutil.which("nvidia-smi") is None:
        yield figures
        return
    query = ["nvidia-smi", "--id=0", "--query-gpu=clocks.sm,power.draw,temperature.gpu"]
    with (folder / "card.csv").open("w+", encoding="utf-8") as file:
        process = subprocess.Popen([*query, "--format=csv,noheader,nounits", "-lms", "200"], stdout=file)
        try:
            yield figures
        finally:
            process.terminate()
            process.wait()
            file.seek(0)
            rows = [line.split(",") for line in file.read().splitlines() if line.count(",") == 2]
            for name, values in zip(
                ("SM clock, MHz", "power, W", "temperature, C"), zip(*rows, strict=True), strict=False
            ):
                numbers = sorted(float(value) for value in values if re.fullmatch(r"\s*[\d.]+\s*", value))
                if numbers:
                    figures[name] = f"{numbers[len(numbers) // 2]:.0f} (highest {numbers[-1]:.0f})"


def versions() -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    packages = ("tensorrt-llm", "torch", "transformers", "sentence-transformers", "vllm")
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


if __name__ == "__main__":
    sys.exit(main())
