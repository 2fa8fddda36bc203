"""One client that sends one text at a time, each of another length: where the time goes, beside onnxruntime alone.

Prints a table and writes results/lone.{md,json}. Servers and the loop of onnxruntime run in turns on the same texts, so
quote the ratios. The loop has no HTTP, no tokenizer and no queue; its environment is made on the first run. A server is
measured when it has compiled its graphs for lone texts and moved its memory to huge pages.

    lone.py [--model FOLDER] [--texts N] [--rounds N] [--dtypes float32,int8] [--baseline CHECKOUT]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from bei_core.bench.measure import machine
from bei_core.bench.workload import texts
from benchmarks.reports import write_results
from benchmarks.serve import server

_ROOT = Path(__file__).parents[1]
_PEER = _ROOT / ".venv-onnxruntime"
_SCRIPT = str(Path(__file__).with_name("lone_onnx.py"))
_FILES = {"float32": ("f32",), "int8": ("int8", "int8_channel")}
_FOR_GRAPHS = 150  # more lone texts than the engine waits for before it compiles graphs for them
_WARM_UP = 350  # these, and more than the 4,000 tokens after which these graphs are moved to huge pages
_HEADERS = {"tokenize": "x-tokenization-time", "queue": "x-queue-time", "infer": "x-inference-time"}


class Line(msgspec.Struct):
    """One run: medians over its texts, in microseconds."""

    name: str
    dtype: str
    turn: int
    p50: float
    p99: float
    stages: dict[str, float]


def peer_python() -> str:
    """The interpreter of onnxruntime's environment, which is made if there is none."""
    python = _PEER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(_PEER)], check=True)
        packages = str(_ROOT / "requirements" / "peers-onnxruntime.txt")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", packages], check=True)
    return str(python)


def alone(python: str, file: Path, lines: Sequence[str], dtype: str, turn: int) -> Line:
    """The calls of onnxruntime on these token ids."""
    command = [python, _SCRIPT, "run", str(file), str(len(os.sched_getaffinity(0)))]
    done = subprocess.run(command, input="\n".join(lines), check=True, stdout=subprocess.PIPE, text=True)
    took = [ms * 1e3 for ms in json.loads(done.stdout)[_WARM_UP:]]
    return _line(f"onnxruntime alone, {file.stem}", dtype, turn, took, {})


@contextmanager
def _package_of(checkout: Path) -> Iterator[None]:
    """Makes servers run the package of a checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(checkout / "packages")
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def served(name: str, checkout: Path, model: str, given: Sequence[str], dtype: str, turn: int) -> Line:
    """Our server's answers over one connection, by stage."""
    with _package_of(checkout), server(model, dtype) as (url, _):
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            for part in (given[:_FOR_GRAPHS], given[_FOR_GRAPHS:_WARM_UP]):
                for text in part:
                    _ask(connection, text)
                _wait_until_idle()
            answers = [_ask(connection, text) for text in given[_WARM_UP:]]
    took = [total for total, _ in answers]
    stages = {stage: statistics.median(each[stage] for _, each in answers) for stage in answers[0][1]}
    return _line(name, dtype, turn, took, stages)


def _ask(connection: socket.socket, text: str) -> tuple[float, dict[str, float]]:
    """(microseconds that the client waited, microseconds of each stage)."""
    body = json.dumps({"inputs": text}).encode()
    request = b"POST /embed HTTP/1.1\r\nhost: bei\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    started = time.perf_counter()
    connection.sendall(request % (len(body), body))
    reply = connection.recv(1 << 20)
    while not reply.endswith(b"]]"):  # the end of the vectors
        reply += connection.recv(1 << 20)
    took = (time.perf_counter() - started) * 1e6
    lines = reply.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    headers = dict(line.lower().split(": ", 1) for line in lines)
    total = float(headers["x-total-time"]) * 1e3
    stages = {stage: float(headers[header]) * 1e3 for stage, header in _HEADERS.items()}
    return took, {**stages, "parse, wake-up": total - sum(stages.values()), "socket, reply, client": took - total}


def _wait_until_idle() -> None:
    """Waits until the children of this process have used less than a tenth of a processor for a second."""

    def spent() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))

    before, now = -math.inf, spent()
    while now - before > 0.1:
        time.sleep(1)
        before, now = now, spent()


def _line(name: str, dtype: str, turn: int, took: Sequence[float], stages: Mapping[str, float]) -> Line:
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    line = Line(name, dtype, turn, cuts[49], cuts[98], dict(stages))
    print(line, file=sys.stderr)
    return line


def table(lines: Sequence[Line], workload: str) -> str:
    """The medians over rounds, and the ratio to the fastest onnxruntime of the same dtype and round."""
    stages = next((list(line.stages) for line in lines if line.stages), [])
    head = ["", "dtype", "p50 us", "p99 us", "p50 / onnxruntime", *stages]
    rows = [head, ["---"] * 2 + ["--:"] * (len(head) - 2)]
    for name, dtype in dict.fromkeys((line.name, line.dtype) for line in lines):
        mine = [line for line in lines if (line.name, line.dtype) == (name, dtype)]
        ratios = sorted(line.p50 / _fastest(lines, line) for line in mine)
        cells = [f"{statistics.median(line.stages[stage] for line in mine):.0f}" for stage in mine[0].stages]
        middle = [f"{statistics.median(getattr(line, what) for line in mine):.0f}" for what in ("p50", "p99")]
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append([name, dtype, *middle, spread, *(cells or [""] * len(stages))])
    return f"{workload}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _fastest(lines: Sequence[Line], line: Line) -> float:
    return min(each.p50 for each in lines if not each.stages and (each.dtype, each.turn) == (line.dtype, line.turn))


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(_ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,int8")
    parser.add_argument("--baseline", type=Path, help="another checkout, whose server is measured, too")
    options = parser.parse_args()
    python, folder, model = peer_python(), _PEER / "onnx", Path(options.model)
    if not folder.exists():
        folder.mkdir()
        subprocess.run([python, _SCRIPT, "write", str(model), str(folder)], check=True)
    given = texts("mixed", _WARM_UP + options.texts, 0)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [each.ids for each in tokenizer.encode_batch(given)]
    servers = {"BEI": _ROOT} | ({"BEI, before": options.baseline} if options.baseline else {})
    lines: list[Line] = []
    for turn in range(options.rounds):
        for dtype in options.dtypes.split(","):
            lines += [served(name, path, str(model), given, dtype, turn) for name, path in servers.items()]
            lines += [
                alone(python, folder / f"{name}.onnx", list(map(json.dumps, ids)), dtype, turn)
                for name in _FILES[dtype]
            ]
    sizes = [len(each) for each in ids[_WARM_UP:]]
    what = f"mixed: {len(sizes)} texts, seed 0, one at a time; tokens: mean {statistics.mean(sizes):.1f}"
    workload = f"{what}, p50 {statistics.median(sizes):.0f}, longest {max(sizes)}. {options.rounds} rounds."
    text = table(lines, workload)
    write_results("lone", text, {"machine": machine(), "workload": workload, "lines": lines})


if __name__ == "__main__":
    main()
