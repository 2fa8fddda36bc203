"""`make bench-peers`: compares other embedding servers and libraries with ours, and writes results/peers.{md,json,png}.

    python -m benchmarks.peers [--peers NAMES] [--models NAMES] [--workloads NAMES] [--rounds N] [--requests N]
                               [--add] [--prepare]

The peers' environments are in the repository, or in the folder that the variable PEER_ENVS names.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

from bei_core.bench.measure import machine
from benchmarks.peers import machine as hardware
from benchmarks.peers.catalogue import OURS, PEERS, chosen, ours
from benchmarks.peers.checkpoints import SHAPES
from benchmarks.peers.forms import Forms
from benchmarks.peers.plot import plot
from benchmarks.peers.results import Result
from benchmarks.peers.run import Comparison, Plan
from benchmarks.peers.table import table
from benchmarks.peers.workloads import WORKLOADS

_ROOT = Path(__file__).parents[2]
_PACKAGES = (
    "infinity-emb", "sentence-transformers", "fastembed", "xllamacpp", "torch", "transformers", "optimum",
    "optimum-intel", "onnxruntime", "openvino",
)  # fmt: skip
_VERSIONS = """
import sys
from importlib.metadata import version, PackageNotFoundError
for name in sys.argv[1:]:
    try: print(name, version(name))
    except PackageNotFoundError: pass
"""


def versions(environments: Path) -> dict[str, str]:
    """The versions of the packages that matter, by environment."""
    found = {"ours": f"bei-core {version('bei-core')}, openvino {version('openvino')}"}
    for name in sorted({peer.environment for peer in PEERS if peer.environment}):
        python = environments / f".venv-peer-{name}" / "bin" / "python"
        if python.exists():
            output = subprocess.run([python, "-c", _VERSIONS, *_PACKAGES], check=True, capture_output=True, text=True)
            found[name] = ", ".join(output.stdout.splitlines())
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peers", default="all", help="parts of names, as in `Infinity f32,int8`; ours is always measured"
    )
    parser.add_argument("--models", default="minilm", help=f"of {', '.join(SHAPES)}, or all")
    parser.add_argument("--workloads", default="mixed,one-client", help=f"of {', '.join(WORKLOADS)}, or all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1000, help="requests of MiniLM's mixed")
    parser.add_argument("--minilm", type=Path, default=_ROOT / ".models" / "all-MiniLM-L6-v2")
    parser.add_argument(
        "--folder", type=Path, default=_ROOT / "build" / "peers", help="where models and their forms are"
    )
    parser.add_argument("--output", type=Path, default=_ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--add", action="store_true", help="keep the results that are there, of the same machine")
    parser.add_argument("--prepare", action="store_true", help="write forms and build engines, and measure nothing")
    return parser.parse_args()


def names(given: str, known: dict[str, object]) -> list[str]:
    """The names of a comma-separated list. Raises SystemExit if one is not known."""
    wanted = list(known) if given == "all" else given.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: all, {', '.join(known)}")
    return wanted


def write(result: Result, folder: Path) -> None:
    """The results as JSON, Markdown and a picture."""
    (folder / "peers.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    (folder / "peers.md").write_text(table(result).rstrip() + "\n")
    if any(each.peer != OURS for each in result.samples):
        plot(result.samples, folder / "peers.png")


def main() -> None:
    """Measures and writes the results."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that peers are stopped, too
    options = arguments()
    environments = Path(os.environ.get("PEER_ENVS", _ROOT))
    os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "true"}
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "peers.json"
    result = msgspec.json.decode(file.read_bytes(), type=Result) if options.add and file.exists() else Result()
    if result.machine and result.machine != machine():
        raise SystemExit(f"{file} is of another machine; measure without --add, or into another --output")
    peaks = hardware.peaks()
    print("peaks, GFLOP/s: " + ", ".join(f"{name} {value:,.0f}" for name, value in peaks.items()), flush=True)
    plan = Plan(
        peers=[ours(precision) for precision in ("f32", "bf16", "int8") if precision in peaks] + chosen(options.peers),
        models=names(options.models, dict(SHAPES)),
        workloads=[WORKLOADS[name] for name in names(options.workloads, dict(WORKLOADS))],
        rounds=options.rounds,
        requests=options.requests,
    )
    comparison = Comparison(plan, Forms(options.folder, options.minilm, environments), result)
    if options.prepare:
        comparison.prepare()
        return
    print(f"about {plan.estimate_s(peaks['f32']) / 60:.0f} minutes on a quiet machine", flush=True)
    result.machine, result.versions = machine(), versions(environments)
    result.peaks.append(peaks)
    turn = 1 + max((each.turn for each in result.samples), default=-1)
    comparison.run(turn, lambda: write(result, options.output))
    print(table(result))


if __name__ == "__main__":
    main()
