"""One command on a machine with a supported card and tensorrt_llm: whether the GPU engine is right there, and how fast.

    scripts/gpu_selfcheck.py [--model FOLDER_OR_REPOSITORY] [--every] [--shim]

Parity with transformers for every family (`--every` checkpoint of the goldens, else one of each kind), the gate of fp8,
the latency of one short query, throughput at 500 and at 5 tokens a request beside trtllm-serve, vLLM and
text-embeddings-inference where they are installed, the share of the card's peak. Writes
benchmarks/results/gpu-<card>.{md,json,png}. Exits with 1 where a check fails.

`--shim` runs the same on the tests' stand-in, without a GPU, and writes to build/gpu_selfcheck instead: so that the
script itself is known to work.
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
    """The number of the process's end: 0 where every check passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MINILM), help="what is measured: a folder or a Hugging Face repository")
    parser.add_argument("--every", action="store_true", help="every golden checkpoint, not one of each kind")
    parser.add_argument("--requests", type=int, default=4000, help="of each workload and server")
    parser.add_argument("--shim", action="store_true", help="without a GPU, on the stand-in: tries the script alone")
    options = parser.parse_args()
    if options.shim:
        sys.path.insert(0, str(SHIMS))
    card = find_card(shim=options.shim)
    findings = check(options, card)
    folder = ROOT / "build" / "gpu_selfcheck" if options.shim else ROOT / "benchmarks" / "results"
    name = "stand-in" if options.shim else "gpu-" + re.sub(r"\W+", "-", card).strip("-").lower()
    findings.write(folder, name)
    print(f"written: {folder / name}.md")
    for failed in findings.failed:
        print(f"FAILED {failed.what}: {failed.figure}")
    return int(bool(findings.failed))


def find_card(*, shim: bool) -> str:
    """The name of the card. Exits where there is none, or where tensorrt_llm is the stand-in and was not asked for."""
    check_version()
    is_shim = hasattr(importlib.import_module("tensorrt_llm"), "IS_SHIM")
    if is_shim != shim:
        raise SystemExit(
            "tensorrt_llm is the stand-in" if is_shim else "--shim, and the real tensorrt_llm is installed"
        )
    torch = importlib.import_module("torch")
    if shim:
        return "no GPU"
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --shim tries the script without one")
    return str(torch.cuda.get_device_name(0))


def check(options: argparse.Namespace, card: str) -> Findings:
    """Everything, one after the other, each said as it ends."""
    findings = Findings(options.shim, card, versions(), Path(options.model).name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for found in checks.parity(folder, options.every):
            print(f"{'ok    ' if found.passed else 'FAILED'} {found.what}: {found.figure}", flush=True)
            findings.checks.append(found)
        measure(options, card, folder, findings)
    return findings


def measure(options: argparse.Namespace, card: str, folder: Path, findings: Findings) -> None:
    """The model in bf16 and in fp8 alone, then served in bf16."""
    quick = options.shim
    findings.checks.append(checks.fp8(options.model, folder / "fp8", **({"calib_size": 32} if quick else {})))
    opened = checks.engine(options.model, folder / "bf16")
    findings.alone["bf16"] = speed.alone(opened.engine, opened.spec, card, rounds=1 if quick else 50)
    opened.engine.close()
    if findings.checks[-1].passed:
        quantized = load(folder / "fp8")
        findings.alone["fp8"] = speed.alone(quantized.engine, quantized.spec, card, rounds=1 if quick else 50)
        quantized.engine.close()
    paths = [str(ROOT / "packages"), *([str(SHIMS)] if quick else [])]
    environ = {"PYTHONPATH": os.pathsep.join(paths)}
    for found in speed.served(options.model, folder / "bf16", options.requests, environ):
        print(f"{found.server}, {found.workload}: {found.report or found.note}", flush=True)
        findings.served.append(found)


def versions() -> dict[str, str]:
    """Of what computed it."""
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
