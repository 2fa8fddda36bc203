"""Checks that an engine for GPUs is correct, and measures its speed. It needs a supported GPU, and the package
tensorrt_llm for `--engine tensorrt_llm`.

    scripts/gpu_selfcheck.py [--model FOLDER_OR_REPOSITORY] [--engine torch|tensorrt_llm] [--every] [--shim]

Compares every family with transformers (one golden checkpoint of each kind, or all with `--every`); checks the fp8
quality gate; measures the latency of one short query, the share of the GPU's peak in full batches, and throughput at
500 and 5 tokens per request, compared with trtllm-serve, vLLM and text-embeddings-inference if they are installed.
Writes benchmarks/results/gpu-<engine>-<name>.{md,json,png}. The exit status is 1 if a check fails.

`--shim` runs the same on the tests' stand-in without a GPU, to test the script itself, and writes to
build/gpu_selfcheck instead.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIMS = ROOT / "tests" / "gpu_path" / "shims"
sys.path[:0] = [str(ROOT), str(ROOT / "packages")]

from bei_core.engines.open import load  # noqa: E402
from bei_core.engines.tensorrt_llm._compat import check_version  # noqa: E402
from scripts.gpu import checks, speed  # noqa: E402
from scripts.gpu.report import Findings  # noqa: E402

MINILM = ROOT / ".models" / "all-MiniLM-L6-v2"


def main() -> int:
    """Runs the self-check; returns the exit status, which is 0 if every check passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MINILM), help="model to measure: a folder or a Hugging Face repository")
    parser.add_argument("--engine", choices=("torch", "tensorrt_llm"), default="tensorrt_llm")
    parser.add_argument("--every", action="store_true", help="check every golden checkpoint, not one of each kind")
    parser.add_argument("--requests", type=int, default=4000, help="number for each workload and server")
    parser.add_argument("--shim", action="store_true", help="run on the stand-in, without a GPU, to test this script")
    options = parser.parse_args()
    if options.shim:
        sys.path.insert(0, str(SHIMS))
    gpu = find_gpu(shim=options.shim, engine=options.engine)
    findings = check(options, gpu)
    folder = ROOT / "build" / "gpu_selfcheck" if options.shim else ROOT / "benchmarks" / "results"
    name = "stand-in" if options.shim else f"gpu-{options.engine}-" + re.sub(r"\W+", "-", gpu).strip("-").lower()
    findings.write(folder, name)
    print(f"written: {folder / name}.md")
    for failed in findings.failed:
        print(f"FAILED {failed.what}: {failed.figure}")
    return int(bool(findings.failed))


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
    """Exits if --shim does not fit the installed tensorrt_llm."""
    check_version()
    is_shim = hasattr(importlib.import_module("tensorrt_llm"), "IS_SHIM")
    if is_shim != shim:
        raise SystemExit(
            "tensorrt_llm is the stand-in: use --shim" if is_shim else "tensorrt_llm is installed: do not use --shim"
        )


def check(options: argparse.Namespace, gpu: str) -> Findings:
    """Runs all checks and measurements, prints each result at once, and returns all of them."""
    findings = Findings(options.shim, gpu, versions(), Path(options.model).name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for found in checks.parity(folder, options.every, options.engine):
            print(f"{'ok    ' if found.passed else 'FAILED'} {found.what}: {found.figure}", flush=True)
            findings.checks.append(found)
        measure(options, gpu, folder, findings)
    return findings


def measure(options: argparse.Namespace, gpu: str, folder: Path, findings: Findings) -> None:
    """Checks fp8, measures the engine without a server in bf16 and fp8, then the servers in bf16.

    The results are added to `findings`.
    """
    quick = options.shim
    findings.checks.append(
        checks.fp8(options.model, folder / "fp8", name=options.engine, **({"calib_size": 32} if quick else {}))
    )
    opened = checks.engine(options.model, folder / "bf16", name=options.engine)
    findings.alone["bf16"] = speed.alone(opened.engine, opened.spec, gpu, rounds=1 if quick else 50)
    opened.engine.close()
    if findings.checks[-1].passed:
        quantized = load(folder / "fp8")
        findings.alone["fp8"] = speed.alone(quantized.engine, quantized.spec, gpu, rounds=1 if quick else 50)
        quantized.engine.close()
    paths = [str(ROOT / "packages"), *([str(SHIMS)] if quick else [])]
    environ = {"PYTHONPATH": os.pathsep.join(paths)}
    for found in speed.served(options.model, folder / "bf16", options.requests, environ, options.engine):
        print(f"{found.server}, {found.workload}: {found.report or found.note}", flush=True)
        findings.served.append(found)


def versions() -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    packages = ("tensorrt-llm", "torch", "transformers", "nvidia-modelopt", "vllm")
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
