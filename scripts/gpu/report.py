"""The report of the GPU self-check, in Markdown and JSON. It is written again after each result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

NO_GPU = (
    "**This run used no GPU: torch's own kernels on a CPU, and for TensorRT-LLM a stand-in. It shows that the script "
    "works and that our classes are right. No figure in it says anything about a GPU.**"
)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check or measurement: one row of the table of its section."""

    section: str
    what: str
    figures: dict[str, str] = {}  # by column
    passed: bool | None = None  # None: a measurement, which cannot fail


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

    def lines(self) -> Iterator[str]:
        """Yields the lines of the report in Markdown."""
        checks = [result for result in self.results if result.passed is not None]
        yield f"# GPU self-check: {self.card}\n"
        if not self.has_gpu:
            yield NO_GPU + "\n"
        yield "Made by `scripts/gpu_selfcheck.py`. " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + ".\n"
        yield f"{len(checks) - len(self.failed)} of {len(checks)} checks passed.\n"
        sections = dict.fromkeys(result.section for result in self.results)
        for section in sorted(sections, key=lambda section: section == "Units"):  # "Units" comes last
            yield f"## {section}\n"
            yield from table([result for result in self.results if result.section == section])
            yield ""

    def write(self, folder: Path, name: str) -> None:
        """Writes `name.md` and `name.json` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text("\n".join(self.lines()) + "\n", encoding="utf-8")
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yields the lines of a Markdown table with a column for every figure that one of the results has.

    The column "check" is there if one of the results is a check.
    """
    columns = list(dict.fromkeys(name for result in results for name in result.figures))
    checks = ["check"] if any(result.passed is not None for result in results) else []
    header = ["", *columns, *checks]
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for result in results:
        passed = {None: "", True: "passed", False: "**failed**"}[result.passed]
        figures = {**result.figures, "check": passed}
        cells = [result.what, *(figures.get(name, "") for name in header[1:])]
        yield "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
