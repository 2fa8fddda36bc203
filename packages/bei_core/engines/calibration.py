"""The texts for the calibration of a quantised engine, and the held-out texts on which its quality is measured.

The two sets have no text in common: the texts are divided first, and then inputs are composed from each part. The
packaged texts are `data/calibration.jsonl`, written for this purpose, and prose from `bench/texts.txt`: queries,
sentences, paragraphs and code in 30 languages. They are joined into inputs of between a few and some hundred tokens,
because the ranges of activations also depend on the length.
"""

from __future__ import annotations

import hashlib
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.errors import ConfigError
from bei_core.models.kind import Kind
from bei_core.models.spec import ModelSpec
from bei_core.models.tokenizer import open_model_tokenizer
from bei_core.tasks import EncodeOptions, Pair, Text, Tokens

log = logging.getLogger(__name__)

T = TypeVar("T")

PACKAGED = "packaged"  # the value of calib_dataset for the packaged texts
HUB_DEFAULT = "abisee/cnn_dailymail"  # truss's default for calib_dataset, a data set on the hub

NUM_HELD_OUT = 256  # held-out texts; at most a quarter of a file
_MIN_TEXTS = 16  # of a file; with fewer texts the measured quality would mean nothing
_FIELDS = ("text", "article", "document")  # of a line in a .jsonl file; the first one that exists is the text
_EVERY_S = 10.0  # between log lines of progress
_CALIBRATION_TOKENS = 512  # of a batch. Another size gives other ranges: that of an activation is a mean over batches
_SHAPES = (0, 1, 1, 2, 4)  # number of texts joined into an input, in turn; 0: the first words of a text, as a query


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The texts for calibration, and their number."""

    dataset: str = PACKAGED  # or the path of a .txt file with a text on each line, or of a .jsonl file
    size: int = 512  # number of inputs
    max_seq_length: int = 1536  # tokens of an input, limited by the model's own length
    seed: int = 0


# Bits of each weight, of the values of `quantization_type` that quantise weights only. Baseten's fp4 means 4 bits.
WEIGHT_ONLY = {"int8_weight_only": 8, "int4_weight_only": 4, "fp4": 4, "fp4_kv": 4, "fp4_mlp_only": 4}


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """A requested quantisation, in truss's names."""

    type: str  # a value of the setting `quantization_type`, but not no_quant
    alpha: float | None  # SmoothQuant's; None means the best one for each activation
    calibration: Calibration

    @property
    def bits(self) -> int | None:
        """Bits of each weight if the CPU engine quantises weights only, else None."""
        return WEIGHT_ONLY.get(self.type)

    @property
    def mlp_only(self) -> bool:
        """Whether the weights of attention's layers are left as they are."""
        return self.type.endswith("_mlp_only")

    @property
    def cpu_precision(self) -> str:
        """The precision of the CPU engine's weights, as in its manifest."""
        return f"int{self.bits}_weight_only" if self.bits else "int8"


def quantization_of(settings: Settings) -> Quantization | None:
    """The quantisation that the settings request; None if they request none.

    Raises ConfigError if smooth_quant_alpha is set and only weights are quantised: no activations are smoothed then.
    """
    kind = settings.quantization_type or ("fp8" if settings.dtype == "int8" else "no_quant")
    if kind == "no_quant":
        return None
    if kind in WEIGHT_ONLY and settings.smooth_quant_alpha is not None:
        raise ConfigError(
            f"smooth_quant_alpha and quantization_type {kind} exclude each other: activations are not quantised"
        )
    calibration = Calibration(
        dataset=settings.calib_dataset, size=settings.calib_size, max_seq_length=settings.calib_max_seq_length
    )
    return Quantization(type=kind, alpha=settings.smooth_quant_alpha, calibration=calibration)


class Samples(NamedTuple):
    """Calibration and held-out inputs, the same for the same `Calibration` and kind of model."""

    calibration: tuple[Text, ...]
    held_out: tuple[Text, ...]

    @property
    def digest(self) -> str:
        """The first 32 hex digits of the SHA-256 of all inputs."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


def read_samples(calibration: Calibration, spec: ModelSpec) -> Samples:
    """The inputs for a model: texts, or pairs of query and document for a model that reads pairs.

    Raises ConfigError if the data set cannot be read or has too few texts.
    """
    rng = random.Random(calibration.seed)  # noqa: S311 - not for cryptography
    texts, compose = _read(calibration.dataset)
    texts.sort(key=lambda _: rng.random())  # Python guarantees the same sequence of `random` in all versions
    num_held_out = min(NUM_HELD_OUT, len(texts) // 4)
    held_out, rest = texts[:num_held_out], texts[num_held_out:]
    if not compose:
        return Samples(tuple(_inputs(rest[: calibration.size], spec)), tuple(_inputs(held_out, spec)))
    parts = ((rest, calibration.size), (held_out, NUM_HELD_OUT))
    return Samples(*(tuple(_inputs(_compose(part, count, rng), spec)) for part, count in parts))


def encode(inputs: Sequence[Text], spec: ModelSpec, tokenizer: Path, max_seq_length: int) -> list[Tokens]:
    """Tokens of each input after the model's default prompt, truncated to `max_seq_length` or the model's length."""
    reader = open_model_tokenizer(tokenizer, spec, max_seq_length)
    prompt = spec.prompts.get(spec.default_prompt_name or "")
    try:
        return reader.encode_now(inputs, EncodeOptions(prompt=prompt, pool_prompt=spec.pools_prompt))
    finally:
        reader.close()


def first_inputs(inputs: Sequence[Tokens], max_tokens: float, least: int) -> Sequence[Tokens]:
    """The first inputs, until they have `max_tokens` tokens together; at least `least` inputs."""
    before = accumulate(map(len, inputs), initial=0)
    return inputs[: max(least, sum(num < max_tokens for num in before))]


def calibration_batches(items: Sequence[Tokens], budget: int = _CALIBRATION_TOKENS) -> list[Batch]:
    """The items in order, in batches of at most `budget` tokens; a longer item has a batch of its own."""
    batches: list[list[Tokens]] = [[]]
    left = budget
    for item in items:
        if batches[-1] and len(item) > left:
            batches.append([])
            left = budget
        batches[-1].append(item)
        left -= len(item)
    return [Batch.pack(batch) for batch in batches]


def outputs(engine: Engine, batches: Sequence[Batch]) -> npt.NDArray[np.float32]:
    """f32[B, D] of all batches together, or f32[T, E] for a model that gives rows of tokens only."""
    run = engine.forward if engine.info.row_width else lambda batch: engine.forward_tokens(batch)[1]
    what = f"held-out texts in {engine.info.precision}"
    return np.concatenate([run(batch) for _, batch in with_progress(batches, what)])


def with_progress(items: Sequence[T], what: str, unit: str = "batches") -> Iterator[tuple[int, T]]:
    """Each item with its number, from 0. Progress: a bar on a terminal, else log lines with the time left."""
    from tqdm import tqdm

    has_bar = sys.stderr.isatty()
    started = logged = time.monotonic()
    for number, item in enumerate(tqdm(items, desc=what, unit=f" {unit}", file=sys.stderr, disable=not has_bar)):
        now = time.monotonic()
        if not has_bar and number and now - logged >= _EVERY_S:
            logged = now
            left = (now - started) / number * (len(items) - number)
            log.info("%s: %d of %d %s, about %.0f s left", what, number, len(items), unit, left)
        yield number, item


def _inputs(texts: Sequence[str], spec: ModelSpec) -> Iterator[Text]:
    """The texts as the model reads them. For a reranker, each text's query is the first words of the previous text.

    A classifier may read texts or pairs, and its files do not say which: every other input is a pair.
    """
    pair: Callable[[str, str], Text] = Pair if spec.template is None else spec.template.fill
    for index, text in enumerate(texts):
        is_second = spec.kind is Kind.CLASSIFIER and index % 2
        if spec.kind is Kind.RERANKER or spec.template is not None or is_second:
            yield pair(_first_words(texts[index - 1], 12), text)
        else:
            yield text


def _compose(texts: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` different inputs, each joined from some of the texts; short and long inputs in turn."""
    inputs: dict[str, None] = {}
    for index in range(20 * count):  # far more than needed to find `count` different ones
        num_texts = _SHAPES[index % len(_SHAPES)]
        chosen = [texts[int(rng.random() * len(texts))] for _ in range(max(num_texts, 1))]
        text = " ".join(chosen) if num_texts else _first_words(chosen[0], 3 + int(rng.random() * 10))
        inputs[text] = None
        if len(inputs) == count:
            break
    return list(inputs)


def _first_words(text: str, count: int) -> str:
    """The first `count` words, but at most 12 characters for each (some scripts have no spaces)."""
    return " ".join(text.split()[:count])[: 12 * count]


def _read(dataset: str) -> tuple[list[str], bool]:
    """(texts of a data set, whether to compose inputs from them)."""
    path = Path(dataset)
    if path.suffix in {".txt", ".jsonl"}:
        return _read_file(path), False
    if dataset == HUB_DEFAULT:
        log.info(
            "calib_dataset %s is not downloaded; the packaged texts are used (or set a .txt or .jsonl file)", dataset
        )
    elif dataset != PACKAGED:
        raise ConfigError(
            f"calib_dataset {dataset!r} is not a known data set; give a .txt file with a text on each line, a .jsonl "
            f"file with a field {' or '.join(_FIELDS)}, or {PACKAGED}"
        )
    folder = files("bei_core")
    prose = folder.joinpath("bench/texts.txt").read_text(encoding="utf-8").splitlines()
    written = _lines_of_json(folder.joinpath("data/calibration.jsonl").read_text(encoding="utf-8"), "calibration.jsonl")
    # All of the prose is English and from one book, so no more texts are taken from it than from the other file.
    return [*prose[:: max(1, len(prose) // len(written))], *written], True


def _read_file(path: Path) -> list[str]:
    """The texts of a file, without duplicates. Raises ConfigError if it cannot be read or has too few."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"calib_dataset {path} cannot be read: {fault}") from fault
    lines = _lines_of_json(text, str(path)) if path.suffix == ".jsonl" else text.split("\n")
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(texts) < _MIN_TEXTS:
        raise ConfigError(f"calib_dataset {path} has {len(texts)} different texts; at least {_MIN_TEXTS} are needed")
    return texts


def _lines_of_json(text: str, name: str) -> list[str]:
    """The text of each line. Raises ConfigError, with the line's number, if a line is not JSON or has no text."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line, type=dict[str, object])
        except (msgspec.DecodeError, msgspec.ValidationError) as fault:
            raise ConfigError(f"calib_dataset {name}, line {number}: {fault}") from fault
        value = next((entry[field] for field in _FIELDS if field in entry), None)
        if not isinstance(value, str):
            raise ConfigError(f"calib_dataset {name}, line {number}: no text in {' or '.join(_FIELDS)}")
        found.append(value)
    return found
