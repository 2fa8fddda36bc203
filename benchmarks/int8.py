"""int8 compared with the precision of `dtype: auto`: engines alone, in turns in one process, on batches of many sizes.

Prints a table and writes it, with its JSON and the kind of processor, to results/int8.{md,json}.

    int8.py [MODEL] [--counters]      counters: prints instead the time of both by kind of operation
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import openvino

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.calibration import calibration_batches
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened, build_engine, load
from bei_core.engines.openvino.changes import change_for
from bei_core.engines.openvino.engine import MODEL, compile_properties, precision_for, usable_cpus
from bei_core.engines.openvino.packing import pack_rows
from bei_core.engines.openvino.processor import has_int8_dot_product
from bei_core.tasks import EncodeOptions
from bei_core.text.tokenizer import TextTokenizer

RESULTS = Path(__file__).parent / "results"
_MODEL = ".models/all-MiniLM-L6-v2"
_ROUNDS = 5
_WORKLOADS = {"short": 800, "mixed": 300, "long": 30}  # texts: about 9,000 to 14,000 tokens each
_BUDGETS = (64, 256, 1024, 4096)  # tokens per batch


def seconds_of(engine: Engine, batches: Sequence[Batch]) -> float:
    """Seconds of one pass over the batches."""
    started = time.perf_counter()
    for batch in batches:
        engine.forward(batch)
    return time.perf_counter() - started


def compare(engines: Mapping[str, Engine], batches: Sequence[Batch]) -> dict[str, float]:
    """Tokens per second of each engine (median over rounds), and the median ratio of their times within a round."""
    for engine in engines.values():
        seconds_of(engine, batches)
    rounds = [{name: seconds_of(engine, batches) for name, engine in engines.items()} for _ in range(_ROUNDS)]
    tokens = sum(batch.num_tokens for batch in batches)
    found = {name: tokens / statistics.median(each[name] for each in rounds) for name in engines}
    return {**found, "ratio": statistics.median(each["plain"] / each["int8"] for each in rounds)}


def measure(engines: Mapping[str, Engine], tokenizer: TextTokenizer) -> list[dict[str, object]]:
    """One line for each workload and batch size."""
    lines: list[dict[str, object]] = []
    for workload, count in _WORKLOADS.items():
        items = tokenizer.encode_now(texts(workload, count, 0), EncodeOptions())
        for budget in _BUDGETS:
            figures = compare(engines, calibration_batches(items, budget))
            lines.append({"workload": workload, "batch_tokens": budget, **figures})
            print(lines[-1], file=sys.stderr)
    return lines


def table(lines: Sequence[Mapping[str, object]], facts: Mapping[str, object]) -> str:
    """The results as Markdown."""
    about = "; ".join(f"{name} {value}" for name, value in facts.items())
    head = f"| workload | tokens a batch | {facts['plain']}: tokens/s | int8: tokens/s | ratio |"
    shown = "| {workload} | {batch_tokens} | {plain:,.0f} | {int8:,.0f} | {ratio:.2f} |"
    rows = [shown.format(**line) for line in lines]
    note = "Made by benchmarks/int8.py. On a shared machine, read the ratios, not the tokens/s.\n"
    return "\n".join([note, f"{about}.\n", head, "|---|--:|--:|--:|--:|", *rows, ""])


def counters(folder: Path, precision: str, batch: Batch) -> Counter[str]:
    """Microseconds of one batch by kind of operation and kernel: of each operation, the least time of some runs."""
    graph = openvino.Core().read_model(folder / MODEL)
    change_for(graph, precision, quantised=True)  # as the engine does
    properties = {**compile_properties(precision), "PERF_COUNT": True}
    compiled = openvino.Core().compile_model(graph, "CPU", properties)
    request = compiled.create_infer_request()
    inputs = pack_rows(batch, with_tokens=False).graph_inputs([port.any_name for port in compiled.inputs])
    least: dict[str, tuple[str, float]] = {}
    for _ in range(_ROUNDS):
        request.infer(inputs)
        for node in request.get_profiling_info():
            kind, seconds = f"{node.node_type} {node.exec_type}", node.real_time.total_seconds()
            least[node.node_name] = min(least.get(node.node_name, (kind, seconds)), (kind, seconds))
    microseconds: Counter[str] = Counter()
    for kind, seconds in least.values():
        microseconds[kind] += round(seconds * 1e6)
    return microseconds


def facts_of(manifest: Manifest) -> dict[str, object]:
    """What the results depend on: processor, OpenVINO, precision, and the quality of the int8 engine."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": f"{usable_cpus()} of {cpu.group(1) if cpu else 'an unknown kind'}",
        "int8 instructions": "yes" if has_int8_dot_product() else "no",
        "OpenVINO": openvino.__version__,
        "plain": precision_for("auto"),
        "quality of int8": str(manifest.quality),
    }


def main() -> None:
    """Builds both engines, measures, writes the results."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    model = given[0] if given else _MODEL
    folders = {
        "plain": build_engine(Settings(model_id=model)),
        "int8": build_engine(Settings(model_id=model, quantization_type="fp8")),
    }
    opened: dict[str, Opened] = {name: load(folder) for name, folder in folders.items()}
    one = opened["int8"]
    tokenizer = TextTokenizer(one.tokenizer, max_seq_len=one.spec.max_seq_len, vocab_size=one.spec.vocab_size)
    facts = facts_of(one.manifest)
    if "--counters" in sys.argv:
        batch = calibration_batches(tokenizer.encode_now(texts("mixed", 100, 0), EncodeOptions()), 1024)[0]
        for name, folder in folders.items():
            print(name, json.dumps(dict(counters(folder, precision_for("auto"), batch).most_common(12)), indent=1))
        return
    lines = measure({name: each.engine for name, each in opened.items()}, tokenizer)
    print(table(lines, facts))
    (RESULTS / "int8.md").write_text(table(lines, facts))
    (RESULTS / "int8.json").write_text(json.dumps({"model": model, "facts": facts, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
