"""The report of the quality gate: one HTML file with the figures, a histogram of cosines, and the worst inputs."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bei_core.tasks import Pair, Templated, Text

Array = npt.NDArray[Any]

REPORT = "quality.html"  # in the folder of an engine that is being built

_NUM_BINS, _NUM_WORST, _SHOWN = 30, 20, 300  # _SHOWN: characters of an input
_WIDTH, _HEIGHT = 600, 160  # of the histogram, in pixels

_STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
table { border-collapse: collapse; width: 100% } caption { text-align: left; font-weight: 600 }
th, td { border: 1px solid; padding: .25rem .5rem; text-align: left; vertical-align: top; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto; fill: currentColor; font: 12px system-ui, sans-serif }
"""


def write_report(
    path: Path, title: str, figures: Sequence[Sequence[str]], cosines: Array, by_text: Sequence[tuple[float, Text]]
) -> None:
    """Writes the report of a comparison with f32. It names no host and loads nothing, so it can be kept and sent.

    `figures` has rows of name, value and threshold. `cosines` is f64[num_rows], the cosine of each row to its f32 row.
    `by_text` has each input with its smallest cosine.
    """
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>",
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        _table("Figures", ("figure", "value", "required"), figures),
        f"<h2>Cosines to f32 of {len(cosines)} held-out rows</h2>",
        _histogram(cosines),
        _worst(by_text),
        "</html>\n",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _histogram(cosines: Array) -> str:
    """Returns an SVG with the distribution of cosines, from the smallest one to 1."""
    finite = cosines[np.isfinite(cosines)]
    low = min(float(finite.min()), 0.999) if len(finite) else 0.0
    counts, edges = np.histogram(finite, bins=_NUM_BINS, range=(low, max(1.0, float(finite.max(initial=1.0)))))
    step, most = _WIDTH / _NUM_BINS, max(1, int(counts.max()))
    bars = "".join(
        f"<rect x='{index * step:.1f}' y='{_HEIGHT * (1 - count / most):.1f}' width='{step - 1:.1f}' height='"
        f"{_HEIGHT * count / most:.1f}'><title>{edges[index]:.5f} to {edges[index + 1]:.5f}: {count}</title></rect>"
        for index, count in enumerate(counts.tolist())
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT + 20}' role='img' aria-label='Histogram of cosines'>{bars}"
        f"<text x='0' y='{_HEIGHT + 16}'>{edges[0]:.4f}</text>"
        f"<text x='{_WIDTH}' y='{_HEIGHT + 16}' text-anchor='end'>{edges[-1]:.4f}</text></svg>"
    )


def _worst(by_text: Sequence[tuple[float, Text]]) -> str:
    """Returns the table of the inputs that are farthest from f32."""
    worst = sorted(by_text, key=lambda entry: -2.0 if isnan(entry[0]) else entry[0])[:_NUM_WORST]
    rows = [(f"{cosine:.5f}", _shown(text)) for cosine, text in worst]
    return _table(f"The {len(rows)} inputs that are farthest from f32", ("cosine", "input"), rows)


def _shown(text: Text) -> str:
    """Returns an input as a text of at most `_SHOWN` characters."""
    if isinstance(text, Pair):
        said = f"{text.first} / {text.second}"
    else:
        said = text.text if isinstance(text, Templated) else str(text)
    return said if len(said) <= _SHOWN else f"{said[: _SHOWN - 1]}…"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(_table_parts(caption, head, rows))


def _table_parts(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"<table><caption>{html.escape(caption)}</caption><thead><tr>"
    yield from (f"<th scope='col'>{html.escape(name)}</th>" for name in head)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</tbody></table>"
