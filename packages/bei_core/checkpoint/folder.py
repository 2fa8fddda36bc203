"""A model's folder: which files are read, and the digest of their content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from bei_core.checkpoint.files import Json, inside, load_json
from bei_core.checkpoint.tensors import Entry, Tensors, entries, sample
from bei_core.errors import CheckpointError

# What is fetched of a repository besides weights. Never pickles (*.bin, *.pt), other formats, or code.
SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "model.safetensors.index.json",
    "*/config.json",
    "*/model.safetensors.index.json",
)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    "BEI reads no pickles, because they can run code; convert the model once, on a machine that may run it: "
    "transformers.AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder at an exact revision."""

    folder: Path
    source: str  # the repository, or the folder's absolute path
    revision: str  # the commit, or `local_digest` of a local folder
    _tensors: dict[str, Tensors] = field(default_factory=dict, init=False, repr=False, compare=False)

    def read_json(self, name: str, *, required: bool = True) -> Json:
        """The content of a JSON file of the folder, an object (modules.json: a list); None if missing and not required.

        Raises CheckpointError naming a file that is missing, malformed or outside the folder.
        """
        path = self.folder / inside(name, "a file of the model")
        if path.is_file():
            content = load_json(path)
            kind, expected = (list, "list") if name == "modules.json" else (dict, "object")
            if not isinstance(content, kind):
                raise CheckpointError(f"{path} is not a JSON {expected}")
            return content
        if required:
            raise CheckpointError(f"{self.source} has no {name}")
        return None

    def tensors(self, folder: str = "") -> Tensors:
        """The weights of the folder, or of the folder of one of its modules. Each is read when it is used.

        Their files stay mapped as long as the checkpoint is referenced. Raises CheckpointError naming a file that is
        missing or damaged.
        """
        if folder not in self._tensors:
            self._tensors[folder] = self._map(folder)
        return self._tensors[folder]

    def _map(self, folder: str) -> Tensors:
        place = self.folder / inside(folder, "a module's folder") if folder else self.folder
        if (place / WEIGHTS).is_file():
            return Tensors(entries(place / WEIGHTS), source=f"{place / WEIGHTS}")
        if (place / INDEX).is_file():
            return Tensors(_sharded(place), source=f"{place / INDEX}")
        where = f"{self.source}/{folder}" if folder else self.source
        raise no_weights(where, (path.name for path in place.iterdir() if path.is_file()) if place.is_dir() else ())

    def check(self) -> Checkpoint:
        """The checkpoint itself, after a check that its weights are there and whole. Raises CheckpointError."""
        for place in _places(self.folder):
            if not place or any((self.folder / place / name).is_file() for name in (WEIGHTS, INDEX)):
                self.tensors(place)
        return self


def accept(folder: Path) -> None:
    """Accepts every folder, where whoever fetches one has nothing to check before its weights."""


def no_weights(where: str, names: Iterable[str]) -> CheckpointError:
    """The error for a folder without safetensors. It names the pickles among its files."""
    pickles = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in PICKLES))
    found = f" but {', '.join(pickles)}" if pickles else ""
    return CheckpointError(f"{where} has no {WEIGHTS}{found}. {CONVERT}")


def is_small(name: str) -> bool:
    """Whether a file, by its name in the model's folder, is one of SMALL_FILES."""
    parts = name.count("/")
    return any(fnmatchcase(name, pattern) for pattern in SMALL_FILES if pattern.count("/") == parts)


def weight_files(folder: Path) -> list[str]:
    """The names of all safetensors that the small files of the folder tell of, whether or not they are there."""
    names: list[str] = []
    for place in _places(folder):
        names.append(f"{place}{WEIGHTS}")
        if (folder / place / INDEX).is_file():
            names += [f"{place}{shard}" for shard in sorted(set(_weight_map(folder / place / INDEX).values()))]
    return names


def _places(folder: Path) -> list[str]:
    """The folders that may have weights: "" and those of sentence-transformers' modules, such as "2_Dense/"."""
    modules = load_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / 'modules.json'} is not a list of modules")
    paths = {str(module["path"]) for module in modules if module.get("path")}
    return ["", *(f"{inside(path, 'a module of modules.json')}/" for path in sorted(paths))]


def local_digest(folder: Path) -> str:
    """The hex SHA-256 of a model folder: of small files the content, of weights the header and a sample of each tensor.

    To read 15 GB of weights would take longer than to load them. The sample is the first 4 KiB of each tensor: weights
    that were trained further differ there, while an edit of a tensor's end alone is not seen. Times and the folder's
    name do not count, so a copy of a folder is the same model.
    """
    found = {path.relative_to(folder).as_posix() for pattern in SMALL_FILES for path in folder.glob(pattern)}
    names = sorted(name for name in found.union(weight_files(folder)) if (folder / name).is_file())
    total = hashlib.sha256()
    for name in names:
        parts = sample(folder / name) if name.endswith(".safetensors") else [(folder / name).read_bytes()]
        file = hashlib.sha256()
        for part in parts:
            file.update(part)
        total.update(name.encode() + b"\0" + file.digest())  # of fixed length: no two folders give the same bytes
    return total.hexdigest()


def _sharded(folder: Path) -> dict[str, Entry]:
    """The tensors of an index, by name. Raises CheckpointError naming a shard or tensor that is missing."""
    weight_map = _weight_map(folder / INDEX)
    shards: dict[str, dict[str, Entry]] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / INDEX} names {shard}, which is missing")
        shards[shard] = entries(folder / shard)
    counts = Counter(chain.from_iterable(shards.values()))
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{folder / INDEX} says that {name} is in {shard}, which does not have it")
        if counts[name] > 1:
            raise CheckpointError(f"{folder / INDEX}: {name} is in {counts[name]} shards")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _weight_map(path: Path) -> dict[str, str]:
    """The shard of each tensor, by an index. Raises CheckpointError if it is malformed or leads outside its folder."""
    index = load_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names")
    for shard in set(weight_map.values()):
        if not inside(shard, f"a shard of {path}").endswith(".safetensors"):
            raise CheckpointError(f"{path} names {shard}, which is not safetensors. {CONVERT}")
    return weight_map
