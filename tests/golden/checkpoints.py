"""The tiny checkpoints that tests load, written from the descriptions in `tests/data/checkpoints`.

A description says what a user's folder would hold: config.json and the other small files as published, the tokenizer,
and name, dtype and shape of every tensor. The weights are random (`weights.py`). docs/architectures.md says how to add
one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tests.golden.weights import BYTES, SCALES, Shape, Values, draw, encode, safetensors

Json: TypeAlias = Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
CHECKPOINTS = DATA / "checkpoints"
TOKENIZERS = DATA / "tokenizers"
WEIGHTS = Path(__file__).with_name("weights.py")
MADE = ROOT / "build" / "checkpoints"
GROUPS = ("base", "encoders", "decoders", "heads", "reference")
TENSOR = re.compile(r"(F32|F16|BF16|I64)\[(\d+(?:,\d+)*)\]")
LAYERS = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {0..2}: layers 0, 1 and 2


@dataclass(frozen=True)
class Description:
    """One checkpoint."""

    name: str
    group: str
    kind: str  # embedding, classification, token_classification, sparse, colbert, yes_no
    number: int  # its place among the cases of its group and kind; chooses the texts
    architecture: str  # the class that computes it, by its published name
    covers: str
    tokenizer: str  # a file in `tests/data/tokenizers`
    config: dict[str, Json]  # config.json
    scales: str  # a key of weights.SCALES
    weights: dict[str, dict[str, str]]  # safetensors file -> name -> "F32[32,48]", or "= NAME" for a copy of a tensor
    family: str = ""  # the file that describes it, and the file of expected outputs
    files: dict[str, Json] = field(default_factory=dict)  # path -> JSON, or a text
    seed: str = ""  # of the weights, where those of the seed `name` would not catch every mistake
    mistakes: dict[str, dict[str, Json]] = field(default_factory=dict)  # name -> wrong values in transformers' config
    silenced: tuple[str, ...] = ()  # patterns of parameters: without any of them, the output has to change
    template: str = ""  # of a reranker whose input is one prompt, with {query} and {document}
    aggregates: bool = False  # whether the entities of transformers' pipeline are stored too

    def content(self) -> dict[str, bytes]:
        """Path -> content of every file of the folder."""
        found = {"config.json": _text(self.config), "tokenizer.json": sources()[TOKENIZERS / self.tokenizer]}
        found |= {path: _text(value) for path, value in self.files.items()}
        for path, tensors in self.weights.items():
            found[path] = self._weights(path, tensors)
        if len(shards := [path for path in self.weights if "-of-" in path]) > 1:
            found["model.safetensors.index.json"] = _text(self._index(shards))
        return found

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Path of the file + "/" + name -> dtype and shape of every random tensor."""
        return {
            f"{path}/{name}": parse(what)
            for path, tensors in self.weights.items()
            for name, what in expand(tensors).items()
            if not what.startswith("=")
        }

    def values(self, path: str, name: str, shape: Shape) -> Values:
        """f64 `shape`: the values of a tensor before they are rounded to its dtype."""
        folder = path.rpartition("/")[0]  # the shards of a model make no difference
        return draw(f"{self.seed or self.name}/{folder}", name, shape, SCALES[self.scales])

    def _weights(self, path: str, tensors: dict[str, str]) -> bytes:
        made: dict[str, tuple[str, Shape, bytes]] = {}
        for name, what in expand(tensors).items():
            if what.startswith("= "):
                made[name] = made[what.removeprefix("= ")]
                continue
            dtype, shape = parse(what)
            values = np.arange(shape[-1]) if dtype == "I64" else self.values(path, name, shape)
            made[name] = (dtype, shape, encode(values, dtype))
        return safetensors(made)

    def _index(self, shards: list[str]) -> Json:
        """model.safetensors.index.json."""
        parsed = {path: {name: parse(what) for name, what in expand(self.weights[path]).items()} for path in shards}
        sizes = [BYTES[dtype] * int(np.prod(shape)) for of in parsed.values() for dtype, shape in of.values()]
        places = {name: path for path, tensors in parsed.items() for name in tensors}
        return {"metadata": {"total_size": sum(sizes)}, "weight_map": places}


@cache
def sources() -> dict[Path, bytes]:
    """Path -> content of all that decides what the checkpoints hold, read once."""
    data = [*CHECKPOINTS.glob("*/*.json"), *TOKENIZERS.glob("*.json")]
    return {path: path.read_bytes() for path in sorted([*data, Path(__file__), WEIGHTS])}


@cache
def descriptions() -> list[Description]:
    """Every checkpoint, in the order of groups, kinds and numbers."""
    found = [case for path in sources() if CHECKPOINTS in path.parents for case in _read(path)]
    return sorted(found, key=lambda case: (GROUPS.index(case.group), case.kind, case.number))


def _read(path: Path) -> Iterator[Description]:
    """The cases of one family: its config holds the values that its cases have in common."""
    family = json.loads(sources()[path])
    for case in family["cases"]:
        case["config"] = family["config"] | case["config"]
        case["silenced"] = tuple(case.get("silenced", ()))
        yield Description(group=path.parent.name, family=path.stem, **case)


def expand(tensors: dict[str, str]) -> dict[str, str]:
    """The tensors of every layer, where a name stands for those of several."""
    found: dict[str, str] = {}
    for name, what in tensors.items():
        layers = LAYERS.search(name)
        numbers = range(int(layers[1]), int(layers[2]) + 1) if layers else [0]
        found |= {LAYERS.sub(str(number), name): what for number in numbers}
    return found


def parse(what: str) -> tuple[str, Shape]:
    """dtype and shape. Raises ValueError for what is not like "F32[32,48]"."""
    if not (match := TENSOR.fullmatch(what)):
        raise ValueError(f"{what!r} is not a dtype and a shape, such as 'F32[32,48]'")
    return match[1], tuple(int(size) for size in match[2].split(","))


def digest(content: dict[str, bytes]) -> str:
    """SHA-256 over the paths and contents of a folder's files."""
    sums = [f"{hashlib.sha256(content[path]).hexdigest()}  {path}\n" for path in sorted(content)]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def write(folder: Path, content: dict[str, bytes]) -> None:
    """Write the files into a new folder."""
    for path, value in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(value)


def made() -> Path:
    """The folder with all checkpoints, each in a folder of its name; they are written if they are not there yet.

    Its name is a digest of all that decides what it holds. It is written under another name and then renamed, so that
    processes which start at the same time, as pytest's workers do, never see a part of it.
    """
    folder = MADE / digest({path.relative_to(ROOT).as_posix(): content for path, content in sources().items()})[:16]
    if folder.is_dir():
        return folder
    MADE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MADE, prefix=".making-") as temporary:
        for case in descriptions():
            write(Path(temporary) / "all" / case.name, case.content())
        try:
            os.rename(Path(temporary) / "all", folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    return folder


def _text(value: Json) -> bytes:
    """A text as it is, or JSON as people indent it."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode()
