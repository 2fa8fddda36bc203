"""The table of results: a row per attack, kept in a file beside it so that rows can be measured one at a time."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

RESULTS = Path(__file__).parents[1] / "results" / "chaos.md"
_HEAD = """# Attacks

Written by `make chaos`; `benchmarks/chaos/` says how each row is measured. {num_passing} of {num_rows} rows hold.

`make chaos` ends with status 1 only for a reply that is wrong or lost, a probe that fails, or a test that fails.
A time or an amount of memory beyond its bound depends on the machine and its load: it is **no** here, with status 0.

| attack | must | measured | holds | date | load |
|---|---|---|---|---|--:|
"""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one attack."""

    name: str
    must: str
    measured: str
    holds: bool
    is_broken: bool = False  # a wrong status, a lost connection or a failed test, rather than a time or a size
    date: str = ""
    load: float = 0.0  # the machine's load average before the attack, from this and all other work

    @property
    def line(self) -> str:
        """The row in Markdown."""
        holds = "yes" if self.holds else "**no**"
        return f"| {self.name} | {self.must} | {self.measured} | {holds} | {self.date} | {self.load:.1f} |\n"


def with_errors(name: str, measure: Callable[[], Row]) -> Row:
    """What `measure` returns; if a client or a probe of it fails, a broken row, in place of an older result."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        measured = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Row(name=name, must="every probe is answered", measured=measured, holds=False, is_broken=True)


def save(path: Path, rows: Sequence[Row], order: Sequence[str]) -> None:
    """Replaces these rows in the table and its JSON, in the order of `order`; other rows stay as they were measured."""
    data = path.with_suffix(".json")
    known = {row.name: row for row in msgspec.json.decode(data.read_bytes(), type=list[Row])} if data.exists() else {}
    known |= {row.name: row for row in rows}
    kept = [known[name] for name in order if name in known]
    data.write_bytes(msgspec.json.format(msgspec.json.encode(kept)) + b"\n")
    head = _HEAD.format(num_passing=sum(row.holds for row in kept), num_rows=len(kept))
    path.write_text(head + "".join(row.line for row in kept), encoding="utf-8")
