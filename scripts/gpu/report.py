"""The report of the GPU self-check, in Markdown and JSON. It is written again after each result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

NO_GPU = (
    "**This run used no GPU: torch's own kernels on a CPU, and for TensorRT-LLM a stand-in. It shows that the script "
    "works and that our classes are right. No figure in it says anything about a GPU.**"
)


PARITY = "Compared with transformers"
BEGINS = "begins: "  # printed by a unit, before the name of a check

# What Baseten publishes about BEI, and where this report has the same figure of this engine.
SOURCE = "https://docs.baseten.co/examples/bei.md"
CLAIMS = {
    "lowest latency of vLLM, SGLang, Infinity, TEI and Ollama": "The engine alone: latency; Over HTTP, with `--peer`",
    "highest throughput of these": "The engine alone: throughput; Over HTTP, with `--peer`",
    "up to 1400 client embeddings per second": "Over HTTP, requests/s",
    "fp8 often keeps a cosine of more than 99% to bf16": "fp8 compared with bf16",
}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check or measurement: one row of the table of its section."""

    section: str
    what: str
    figures: dict[str, str] = {}  # by column
    passed: bool | None = None  # None: a measurement, which cannot fail, or a check that did not run
    skipped: str = ""  # why the check or unit did not run
    unit: str = ""  # the unit that made it, such as "alone/bert-large/fp8": KIND/MODEL/PRECISION


class Findings(msgspec.Struct, kw_only=True):
    """The results of a run so far."""

    card: str
    has_gpu: bool
    versions: Mapping[str, str]
    results: list[Result] = []

    @property
    def failed(self) -> list[Result]:
        """The checks that did not pass."""
        return [result for result in self.results if result.passed is False]

    @property
    def skipped(self) -> list[Result]:
        """The checks and units that did not run."""
        return [result for result in self.results if result.skipped]

    def summary(self) -> str:
        """How many checks passed, and how many checks and units did not run, in one line."""
        checks = [result for result in self.results if result.passed is not None]
        passed = len(checks) - len(self.failed)
        return f"{passed} of {len(checks)} checks passed; {len(self.skipped)} checks or units did not run."

    def lines(self) -> Iterator[str]:
        """Yields the lines of the report in Markdown."""
        yield f"# GPU self-check: {self.card}\n"
        if not self.has_gpu:
            yield NO_GPU + "\n"
        yield "Made by `scripts/gpu_selfcheck.py`. " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + ".\n"
        yield self.summary() + "\n"
        sections = dict.fromkeys(result.section for result in self.results)
        for section in sorted(sections, key=lambda section: section == "Units"):  # "Units" comes last
            yield f"## {section}\n"
            yield from table([result for result in self.results if result.section == section])
            yield ""
        yield from claims()

    def write(self, folder: Path, name: str) -> None:
        """Writes `name.md` and `name.json` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text("\n".join(self.lines()) + "\n", encoding="utf-8")
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def claims() -> Iterator[str]:
    """Yields the lines of the section with Baseten's claims."""
    yield "## What Baseten publishes about BEI\n"
    yield f"[Its documentation]({SOURCE}) names no model, card, batch or text for these. To be read beside:\n"
    yield from ("| claim | here |", "| --- | --- |", *(f"| {claim} | {here} |" for claim, here in CLAIMS.items()))


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yields the lines of a Markdown table with a column for every figure that one of the results has.

    The column "check" is there if one of the results is a check, or did not run.
    """
    columns = list(dict.fromkeys(name for result in results for name in result.figures))
    checks = ["check"] if any(result.passed is not None or result.skipped for result in results) else []
    header = ["", *columns, *checks]
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for result in results:
        skipped = f"not run: {result.skipped}" if result.skipped else ""
        figures = {**result.figures, "check": {None: skipped, True: "passed", False: "**failed**"}[result.passed]}
        cells = [result.what, *(figures.get(name, "") for name in header[1:])]
        yield "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
