"""The units of the GPU self-check. Each has a process of its own, because a kernel that fails may end the process."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bei_core.engines.open import Opened, load
from bei_core.engines.quality import Quality
from bei_core.engines.torch.loading import supports
from bei_core.models.families import FAMILIES
from scripts.gpu import models, speed
from scripts.gpu.report import Result

PRECISIONS = ("bf16", "fp8")
_MEASURED_LAYOUTS = ("bert", "decoder")  # of the models in `models.CONFIGS`
_QUICK_ONLY_ALONE = "mistral-7b"  # its files are large, so with --quick it is measured without a server


def names(options: Namespace) -> list[str]:
    """Returns the units of a run, the most important first."""
    given = options.models
    alone = [f"alone/{model}/{precision}" for model in given for precision in PRECISIONS]
    served = [
        f"http/{model}/{precision}"
        for model in given
        for precision in PRECISIONS
        if not (options.quick and model == _QUICK_ONLY_ALONE)
    ]
    layouts = {family.layout.name for family in FAMILIES.values() if not family.is_static} - {*_MEASURED_LAYOUTS}
    first, rest = ([f"parity/{layout}" for layout in each] for each in (_MEASURED_LAYOUTS, sorted(layouts)))
    flex = [] if options.shim else ["flex"]
    peers = [f"peer/{peer}" for peer in options.peers]
    others = [f"{library}/{model}" for model in given for library in ("transformers", "sentence-transformers")]
    return ["card", *alone[:1], *first, *served[:1], *alone[1:], *served[1:], *peers, *flex, *rest, *others]


def run(name: str, options: Namespace, folder: Path) -> Iterator[Result]:
    """Runs a unit; yields its results. `folder` keeps the models between units. Raises the errors of the unit."""
    kind, *rest = name.split("/")
    yield from _RUN[kind](options, folder, *rest)


def _card(options: Namespace, folder: Path) -> Iterator[Result]:
    yield speed.measure_card(folder)


def _parity(options: Namespace, folder: Path, layout: str) -> Iterator[Result]:
    from scripts.gpu import checks  # makes the golden checkpoints, which takes seconds

    yield from checks.parity(layout, folder / "parity", options.engine, every=options.every, start=options.start)
    shutil.rmtree(folder / "parity", ignore_errors=True)


def _flex(options: Namespace, folder: Path) -> Iterator[Result]:
    from scripts.gpu import checks

    yield from checks.attention()


def _alone(options: Namespace, folder: Path, model: str, precision: str) -> Iterator[Result]:
    if _is_refused(options, precision):
        skipped = "the card does not support fp8"
        yield Result(section="The engine alone: throughput", what=f"{model} fp8", skipped=skipped)
        return
    with _opened(options, folder, model, precision) as opened:
        if opened.manifest.quality is not None:
            yield _quality(opened.manifest.quality, model, is_real=model in options.folders)
        yield from speed.engine_alone(opened, f"{model} {precision}", folder, rounds=options.rounds)


def _quality(quality: Quality, model: str, *, is_real: bool) -> Result:
    """Returns the row of an fp8 engine that was built; a real model below the usual thresholds is not built."""
    least = quality.bar.mean_cosine if quality.bar else 0.0
    gate = (
        f"mean cosine at least {least:g}" if is_real else "none: random weights; --models NAME=FOLDER has the real one"
    )
    figures = {"quality": str(quality), "gate": gate}
    return Result(section="fp8 compared with bf16, on real texts", what=model, figures=figures, passed=is_real or None)


def _is_refused(options: Namespace, precision: str) -> bool:
    return precision == "fp8" and not options.shim and not supports("fp8")


def _http(options: Namespace, folder: Path, model: str, precision: str) -> Iterator[Result]:
    if _is_refused(options, precision):
        return
    with _opened(options, folder, model, precision):
        """The engine is built here if necessary; the server loads it again."""
    with speed.server(folder / f"{model}-{precision}", options.paths) as url:
        yield from speed.over_http(url, f"BEI, {model} {precision}", requests=options.requests)


def _peer(options: Namespace, folder: Path, peer: str) -> Iterator[Result]:
    yield from speed.over_http(options.peers[peer], peer, requests=options.requests)


def _transformers(options: Namespace, folder: Path, model: str) -> Iterator[Result]:
    yield speed.transformers_alone(_checkpoint(options, folder, model), model, rounds=options.rounds)


def _sentence_transformers(options: Namespace, folder: Path, model: str) -> Iterator[Result]:
    yield speed.sentence_transformers_alone(_checkpoint(options, folder, model), model, rounds=options.rounds)


_RUN: dict[str, Callable[..., Iterator[Result]]] = {
    "card": _card,
    "parity": _parity,
    "flex": _flex,
    "alone": _alone,
    "http": _http,
    "peer": _peer,
    "transformers": _transformers,
    "sentence-transformers": _sentence_transformers,
}


@contextmanager
def _opened(options: Namespace, folder: Path, model: str, precision: str) -> Iterator[Opened]:
    """Yields the loaded engine of a model, which is built if no unit has built it before; closes it at the end."""
    place = folder / f"{model}-{precision}"
    settings: dict[str, Any] = {}
    if precision == "fp8":
        settings = {"quantization_type": "fp8", "calib_size": options.calib_size}
        if model not in options.folders:
            settings["quality_mean_cosine"] = 0.01  # random weights have no quality that could be lost
    if place.is_dir():
        opened = load(place)
    else:
        checkpoint = str(_checkpoint(options, folder, model))
        opened = models.build_engine(checkpoint, place, name=options.engine, **settings)
    try:
        yield opened
    finally:
        opened.engine.close()


def _checkpoint(options: Namespace, folder: Path, model: str) -> Path:
    """Returns the folder of a model's checkpoint, which is made if no unit has made it before."""
    if model in options.folders:
        return Path(options.folders[model])
    made = folder / model
    if not made.is_dir():
        shutil.rmtree(folder / "unfinished", ignore_errors=True)  # of a process that was ended
        models.make_checkpoint(model, folder / "unfinished").rename(made)
    return made
