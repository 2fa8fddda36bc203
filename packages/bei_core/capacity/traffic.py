"""The requests of a simulation: arrivals as a seeded Poisson process, and lengths in tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bei_core.bench.calibrate import Calibration
from bei_core.bench.workload import KINDS, texts
from bei_core.errors import ConfigError

_NUM_LENGTHS = 20_000  # of a workload


def lengths_of(given: str, calibration: Calibration) -> list[int]:
    """Returns lengths in tokens, from the name of a workload of `bei bench`, a mean, or a file with one length a line.

    A mean gives the workload `mixed`, scaled. Raises ConfigError for anything else.
    """
    if given in KINDS:
        return _of_workload(given, calibration)
    if given.replace(".", "", 1).isdigit() and float(given) >= 1:
        mixed = _of_workload("mixed", calibration)
        scale = float(given) * len(mixed) / sum(mixed)
        return [max(1, round(length * scale)) for length in mixed]
    return _of_file(Path(given))


def poisson(phases: Iterable[tuple[float, float]], lengths: Sequence[int]) -> Iterator[tuple[float, int]]:
    """Yields pairs of arrival (seconds) and random length (tokens).

    `phases` are pairs of duration (seconds) and rate (requests per second), one after the other.
    """
    draw, begin = random.Random(0), 0.0  # noqa: S311, not for cryptography
    for seconds, rate in phases:
        at, begin = begin, begin + seconds
        while rate > 0 and (at := at + draw.expovariate(rate)) < begin:
            yield at, draw.choice(lengths)


def _of_workload(name: str, calibration: Calibration) -> list[int]:
    return [calibration.num_tokens(len(text.split())) for text in texts(name, _NUM_LENGTHS, seed=0)]


def _of_file(path: Path) -> list[int]:
    """Returns the numbers in a file. Raises ConfigError if it is missing or has anything but positive whole numbers."""
    try:
        lengths = [int(word) for word in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`lengths` must be a workload ({', '.join(KINDS)}), a mean number of tokens, or a file with one number of "
            f"tokens a line: {error}"
        ) from error
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"{path} must have numbers of tokens, each at least 1")
    return lengths
