"""Writes the results of a benchmark."""

from __future__ import annotations

from pathlib import Path

import msgspec

RESULTS = Path(__file__).with_name("results")


def write_results(stem: str, text: str, figures: object) -> None:
    """Write results/STEM.md and results/STEM.json, and print the text."""
    (RESULTS / f"{stem}.md").write_text(text)
    (RESULTS / f"{stem}.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    print(text)
