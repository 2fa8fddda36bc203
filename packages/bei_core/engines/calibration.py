"""The texts that a quantised engine is calibrated with, and the held-out texts that its quality is measured on.

Never the same: the texts are divided first, and each side made of its own part. The packaged ones are written for this
(`data/calibration.jsonl`) or prose of `bench/texts.txt`: queries, sentences, paragraphs and code in 30 languages,
joined into inputs of a few to some hundred tokens, since the ranges of activations depend on lengths too.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import msgspec

from bei_core.config.settings import Settings
from bei_core.config.trt_llm import QuantizationType
from bei_core.errors import ConfigError
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Encoding, Pair, Text, Tokens
from bei_core.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

PACKAGED = "packaged"  # the name of the texts that are here
HUB_DEFAULT = "abisee/cnn_dailymail"  # truss's default, which is on the hub

NUM_HELD_OUT = 256  # texts of the gate; of a small file a quarter
_FEWEST = 16  # texts of a file; the gate's figures of fewer say nothing
_FIELDS = ("text", "article", "document")  # of a line of JSON, the first that is there
_SHAPES = (0, 1, 1, 2, 4)  # pieces that inputs are made of, in turn; 0: the first words of one, as a query


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Which texts, and how much of them."""

    dataset: str = PACKAGED  # or a .txt file with a text a line, or a .jsonl file
    size: int = 512  # inputs to calibrate with
    max_seq_length: int = 1536  # tokens of each, where the model takes as many
    seed: int = 0


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, by truss's names, where anything is."""

    type: QuantizationType
    alpha: float | None  # SmoothQuant's; None: what suits each product
    calibration: Calibration


def quantization_of(settings: Settings) -> Quantization | None:
    """What the settings ask for; None: weights as they are."""
    kind = settings.quantization_type or ("fp8" if settings.dtype == "int8" else "no_quant")
    if kind == "no_quant":
        return None
    calibration = Calibration(
        dataset=settings.calib_dataset, size=settings.calib_size, max_seq_length=settings.calib_max_seq_length
    )
    return Quantization(type=kind, alpha=settings.smooth_quant_alpha, calibration=calibration)


class Samples(NamedTuple):
    """Inputs of both sides, the same for the same `Calibration` and kind of model."""

    calibration: tuple[Text, ...]
    held_out: tuple[Text, ...]

    @property
    def digest(self) -> str:
        """32 hex digits of the sha256 of the inputs of both sides."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


def read_samples(how: Calibration, spec: ModelSpec) -> Samples:
    """The inputs for a model: texts, or what it reads of a query and a document.

    Raises ConfigError where the data set is no file of texts that can be read, or has too few.
    """
    rng = random.Random(how.seed)  # noqa: S311 - no secret
    texts, compose = _read(how.dataset)
    texts.sort(key=lambda _: rng.random())  # of Random's methods the one that is promised to stay the same
    num_held_out = min(NUM_HELD_OUT, len(texts) // 4)
    held_out, rest = texts[:num_held_out], texts[num_held_out:]
    if not compose:
        return Samples(tuple(_inputs(rest[: how.size], spec)), tuple(_inputs(held_out, spec)))
    sides = ((rest, how.size), (held_out, NUM_HELD_OUT))
    return Samples(*(tuple(_inputs(_composed(pieces, count, rng), spec)) for pieces, count in sides))


def encode(inputs: Sequence[Text], spec: ModelSpec, tokenizer: Path, max_seq_length: int) -> list[Tokens]:
    """The tokens of each input, cut to `max_seq_length` or the model's length, with the model's default prompt."""
    reader = TextTokenizer(
        tokenizer,
        max_seq_len=min(spec.max_seq_len, max_seq_length),
        vocab_size=spec.vocab_size,
        lower_case=spec.do_lower_case,
    )
    prompt = spec.prompts.get(spec.default_prompt_name or "")
    try:
        return reader.encode_now(inputs, Encoding(prompt=prompt, pool_prompt=spec.pools_prompt))
    finally:
        reader.close()


def _inputs(texts: Sequence[str], spec: ModelSpec) -> Iterator[Text]:
    """The texts as the model reads them: of a reranker each after the query that its neighbour makes.

    Nothing says whether a classifier of several labels reads texts or pairs, so of those every other input is a pair.
    """
    pair: Callable[[str, str], Text] = Pair if spec.template is None else spec.template.fill
    for index, text in enumerate(texts):
        if spec.kind == "reranker" or spec.template is not None or (spec.kind == "classifier" and index % 2):
            yield pair(_first_words(texts[index - 1], 12), text)
        else:
            yield text


def _composed(pieces: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` different inputs made of pieces, short and long in turn."""
    made: dict[str, None] = {}
    for index in range(20 * count):  # far more than it takes
        num_pieces = _SHAPES[index % len(_SHAPES)]
        chosen = [pieces[int(rng.random() * len(pieces))] for _ in range(max(num_pieces, 1))]
        text = " ".join(chosen) if num_pieces else _first_words(chosen[0], 3 + int(rng.random() * 10))
        made[text] = None
        if len(made) == count:
            break
    return list(made)


def _first_words(text: str, count: int) -> str:
    """As many words, or, where a script has no spaces, characters of a few times as many."""
    return " ".join(text.split()[:count])[: 12 * count]


def _read(dataset: str) -> tuple[list[str], bool]:
    """The texts of a data set, and whether inputs are to be composed of them."""
    path = Path(dataset)
    if path.suffix in {".txt", ".jsonl"}:
        return _read_file(path), False
    if dataset == HUB_DEFAULT:
        log.info("calibrating with the packaged texts; %s is not fetched (give a .txt or .jsonl file instead)", dataset)
    elif dataset != PACKAGED:
        raise ConfigError(
            f"calib_dataset {dataset!r} is no data set here; give a .txt file with a text a line, a .jsonl file with "
            f"a field {' or '.join(_FIELDS)}, or {PACKAGED}"
        )
    folder = files("bei_core")
    prose = folder.joinpath("bench/texts.txt").read_text(encoding="utf-8").splitlines()
    written = _lines_of_json(folder.joinpath("data/calibration.jsonl").read_text(encoding="utf-8"), "calibration.jsonl")
    # As many of the one as of the other: all of the prose is English, and of one book.
    return [*prose[:: max(1, len(prose) // len(written))], *written], True


def _read_file(path: Path) -> list[str]:
    """The texts of a file, each once. Raises ConfigError naming what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"calib_dataset {path} cannot be read: {fault}") from fault
    lines = _lines_of_json(text, str(path)) if path.suffix == ".jsonl" else text.split("\n")
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(texts) < _FEWEST:
        raise ConfigError(f"calib_dataset {path} has {len(texts)} different texts; at least {_FEWEST} are needed")
    return texts


def _lines_of_json(text: str, name: str) -> list[str]:
    """The text of each line. Raises ConfigError naming a line without one."""
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
