"""The table of results by family, printed at the end of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

COLUMNS = ("embedding", "classification", "other outputs", "packed = alone", "fp8", "no prefix", "prefix")


@dataclass
class Table:
    """The worst figure for each cell: the largest difference from transformers; for fp8 the lowest cosine."""

    cells: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    def note(self, family: str, column: str, value: float) -> None:
        if column not in COLUMNS:
            raise ValueError(column)
        worse = min if column == "fp8" else max
        before, count = self.cells.get((family, column), (value, 0))
        self.cells[family, column] = (worse(before, value), count + 1)

    def lines(self) -> list[str]:
        """One line per family: the worst figures, each with its number of models."""
        families = sorted({family for family, _ in self.cells})
        rows = [["engine, family", *COLUMNS]]
        rows += [[family, *(self._cell(family, column) for column in COLUMNS)] for family in families]
        widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS) + 1)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        meaning = (
            "Largest difference from transformers in f32, for fp8 lowest cosine; in brackets the number of models."
        )
        return [*lines, meaning]

    def _cell(self, family: str, column: str) -> str:
        if (family, column) not in self.cells:
            return "-"
        value, count = self.cells[family, column]
        return f"{value:.4f} ({count})" if column == "fp8" else f"{value:.1e} ({count})"


TABLE = Table()
