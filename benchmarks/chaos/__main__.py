"""Attacks a server of its own, on loopback, and writes a row for each attack to benchmarks/results/chaos.md.

    make chaos                                  all rows, ten minutes and more
    make chaos ARGS="--only 'capacity'"         the rows whose name matches; the others keep their results
    make chaos ARGS="--seconds 6 --no-large"    shorter loads, and no requests that are computed for long
    make chaos-quick                            a minute: requests and faults, whose replies no slow machine changes

Ends with status 1 if a reply was wrong or lost or a test failed; a time or size beyond its bound is only in the table,
which says so in its head.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
import psutil

from benchmarks.chaos import attacks, load, proofs
from benchmarks.chaos.table import RESULTS, Row, save, with_errors
from tests.chaos.attacks import ATTACKS
from tests.e2e.server import Server

ORDER = (*load.ORDER, *attacks.ORDER, attacks.CRASH, attacks.FAULTS, *proofs.ORDER)

Measurement: TypeAlias = tuple[str, Callable[[], Row]]  # the name of a row, and what measures it


class Options(argparse.Namespace):
    """The flags."""

    only: str
    quick: bool
    seconds: float
    large: bool
    seed: int
    output: Path


def loads(chosen: set[str], options: Options, folder: Path) -> Iterator[Measurement]:
    """The rows of overload, on one server."""
    if chosen.isdisjoint(load.ORDER):
        return
    with load.Loaded(folder, options.seed) as loaded:
        loaded.measure_peak(min(20.0, options.seconds))
        for overload in load.OVERLOADS:
            if overload.name in chosen:
                yield overload.name, partial(loaded.overload, overload, options.seconds)
        if load.LATE in chosen:
            yield load.LATE, partial(loaded.deadlines, min(30.0, options.seconds))


def requests(chosen: set[str], options: Options, folder: Path) -> Iterator[Measurement]:
    """The rows of single attacks, on one server."""
    if chosen.isdisjoint(attacks.ORDER):
        return
    with Server(folder / "server", folder / "cache") as server:
        attacks.fill(server)
        if attacks.QUIET in chosen:
            yield attacks.QUIET, partial(attacks.quiet, server)
        for attack in ATTACKS:
            if attack.name in chosen and (options.large or 200 not in attack.statuses):
                yield attack.name, partial(attacks.send, server, attack)
        if attacks.BODIES in chosen:
            yield attacks.BODIES, partial(attacks.bodies, server)
        if attacks.INFLATED in chosen and options.large:
            yield attacks.INFLATED, partial(attacks.inflated, server)
        if attacks.HELD in chosen:
            yield attacks.HELD, partial(attacks.hold, server)
        if attacks.LARGE in chosen and options.large:
            yield attacks.LARGE, partial(attacks.large, server)


def rows(chosen: set[str], options: Options, folder: Path) -> Iterator[Measurement]:
    """What measures each chosen row, in turn; servers run while their rows are measured."""
    yield from loads(chosen, options, folder)
    yield from requests(chosen, options, folder)
    if attacks.CRASH in chosen:
        yield attacks.CRASH, partial(attacks.crash, folder)
    if attacks.FAULTS in chosen:
        num_requests = 2000 if options.seconds >= 60 else 200
        yield attacks.FAULTS, partial(attacks.faults, folder, options.seed, num_requests)
    for name in proofs.ORDER:
        if name in chosen:
            yield name, partial(proofs.prove, name)


def main() -> None:
    """Measures the chosen rows, one after the other, and saves each at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression; rows whose name has no match are not measured")
    parser.add_argument("--quick", action="store_true", help="only rows whose verdict does not depend on the machine")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each load lasts")
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(namespace=Options())
    chosen = {name for name in (attacks.QUICK if options.quick else ORDER) if re.search(options.only, name)}
    is_broken = False
    with tempfile.TemporaryDirectory() as name:
        for row_name, measure in rows(chosen, options, Path(name)):
            load_average = psutil.getloadavg()[0]
            row = with_errors(row_name, measure)
            row = msgspec.structs.replace(row, date=time.strftime("%Y-%m-%d"), load=load_average)
            print(row.line, end="", flush=True)
            save(options.output, [row], ORDER)
            is_broken = is_broken or row.is_broken
    sys.exit(is_broken)


if __name__ == "__main__":
    main()
