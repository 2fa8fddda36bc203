"""The folder of a model: which files are read, and a digest of their content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath

from bei_core.checkpoint.files import Json, inside, load_json
from bei_core.checkpoint.pickles import CONVERT, pickled_entries, sample_pickled
from bei_core.checkpoint.router import ROUTER, Route, read_route
from bei_core.checkpoint.tensors import Entry, Tensors, entries, sample
from bei_core.errors import CheckpointError

# The linear layers that FlagEmbedding publishes beside bge-m3's transformer. Beside the weights, they are the only
# pickles that are fetched and read (`checkpoint/pickles.py`).
SPARSE_LINEAR, COLBERT_LINEAR = "sparse_linear.pt", "colbert_linear.pt"

# The weights of a folder, and the index if they are in several files. Pickles are read only where no safetensors are.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

# The configuration of an adapter (PEFT), which transformers adds to the model. BEI reads it only to refuse the model.
ADAPTER = "adapter_config.json"

# What is fetched of a repository besides weights. Other pickles (*.bin, *.pt), formats and code are never fetched.
_OF_A_MODEL = (
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
    "chat_template.jinja",
    "sentence_*_config.json",
    ADAPTER,
)
SMALL_FILES = (
    "config.json",
    *_OF_A_MODEL,
    "modules.json",
    "config_sentence_transformers.json",
    ROUTER,
    INDEX,
    PICKLED_INDEX,
    SPARSE_LINEAR,
    COLBERT_LINEAR,
    "*/config.json",
    f"*/{INDEX}",
    f"*/{PICKLED_INDEX}",
    # Where sentence-transformers puts a first module that has a folder, also of a route ("document_0_Transformer").
    *(f"{first}/{name}" for first in ("0_*", "*_0_*") for name in _OF_A_MODEL),
)
_WITHOUT_WEIGHTS = ("_Pooling", "_Normalize", "_Dropout")  # folders of modules, as sentence-transformers names them
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder at an exact revision."""

    folder: Path
    source: str  # the repository, or the folder's absolute path
    revision: str  # the commit, or `local_digest` of a local folder
    _tensors: dict[str, Tensors] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def first_module(self) -> str:
        """The folder of the first module, which has the transformer and the tokenizer; "" is the model's folder."""
        return module_folders(self.folder)[0]

    @cached_property
    def route(self) -> Route:
        """The modules of modules.json, in which the served route of a Router takes its place. Raises as `route_of`."""
        return route_of(self.folder)

    def in_first_module(self, name: str) -> str:
        """The path of a file of the first module, from the model's folder."""
        return f"{self.first_module}/{name}" if self.first_module else name

    def read_json(self, name: str, *, required: bool = True) -> Json:
        """The JSON object in a file of the folder (a list in modules.json). None if it is missing and not required.

        Raises CheckpointError, naming the file, if it is missing, malformed or outside the folder.
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
        """The weights of the first module, or of another module's folder. Each tensor is read when it is used.

        Their files stay mapped as long as the checkpoint is referenced. Raises CheckpointError, naming the file, if a
        file is missing or damaged.
        """
        folder = folder or self.first_module
        if folder not in self._tensors:
            self._tensors[folder] = self._map(folder)
        return self._tensors[folder]

    def pickled(self, name: str) -> Tensors:
        """The tensors of a file that torch.save wrote. Raises CheckpointError, naming it, if it has anything else."""
        if name not in self._tensors:
            self._tensors[name] = Tensors(pickled_entries(self.folder / name), source=f"{self.folder / name}")
        return self._tensors[name]

    def _map(self, folder: str) -> Tensors:
        place = self.folder / inside(folder, "a module's folder") if folder else self.folder
        for weights, index in ((WEIGHTS, INDEX), (PICKLED, PICKLED_INDEX)):
            if (place / weights).is_file():
                return Tensors(_entries(place / weights), source=f"{place / weights}")
            if (place / index).is_file():
                return Tensors(_sharded(place / index), source=f"{place / index}")
        where = f"{self.source}/{folder}" if folder else self.source
        raise no_weights(where, (path.name for path in place.iterdir() if path.is_file()) if place.is_dir() else ())

    def check(self) -> Checkpoint:
        """The checkpoint itself. Raises CheckpointError if weights are missing or damaged."""
        for place in module_folders(self.folder):
            if place == self.first_module or has_weights(self.folder / place):
                self.tensors(place)
        return self


def accept(folder: Path) -> None:
    """Accept every folder: the `check` of a caller that has nothing to check before weights are fetched."""


def has_weights(folder: Path) -> bool:
    """Whether there are weights in the folder itself."""
    return has_safetensors(folder) or any((folder / name).is_file() for name in (PICKLED, PICKLED_INDEX))


def has_safetensors(folder: Path) -> bool:
    """Whether there are safetensors in the folder itself."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def is_weights(name: str) -> bool:
    """Whether a path names safetensors, or a pickle with weights."""
    return name.endswith(".safetensors") or fnmatchcase(PurePosixPath(name).name, "pytorch_model*.bin")


def choose_format(names: Iterable[str]) -> set[str]:
    """The paths without the pickled weights, and their index, of each folder that has safetensors."""
    chosen = set(names)
    with_safetensors = {PurePosixPath(name).parent for name in chosen if PurePosixPath(name).name in {WEIGHTS, INDEX}}
    pickled = (name for name in chosen if fnmatchcase(PurePosixPath(name).name, "pytorch_model*.bin*"))
    return chosen.difference([name for name in pickled if PurePosixPath(name).parent in with_safetensors])


def no_weights(where: str, names: Iterable[str]) -> CheckpointError:
    """The error for a folder without weights. It names the pickles among `names`, the folder's files."""
    pickles = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in PICKLES))
    found = f" but {', '.join(pickles)}" if pickles else ""
    return CheckpointError(f"{where} has no {WEIGHTS} and no {PICKLED}{found}. BEI reads no other formats; {CONVERT}")


def is_small(name: str) -> bool:
    """Whether a path in the model's folder is one of SMALL_FILES."""
    parts = name.count("/")
    return any(fnmatchcase(name, pattern) for pattern in SMALL_FILES if pattern.count("/") == parts)


def weight_files(folder: Path) -> list[str]:
    """The paths of weights, by the folder's small files; the weights themselves may be missing."""
    return [*safetensors_files(folder), *pickled_files(folder)]


def safetensors_files(folder: Path) -> list[str]:
    """The paths of all safetensors files, by the folder's small files; the safetensors themselves may be missing."""
    return [name for place in _places(folder) for name in _files_at(folder, place, WEIGHTS, INDEX)]


def pickled_files(folder: Path) -> list[str]:
    """The paths of pickled weights in folders that have no safetensors; the pickles themselves may be missing."""
    places = (place for place in _places(folder) if not place.name.endswith(_WITHOUT_WEIGHTS))
    lacking = (place for place in places if not has_safetensors(folder / place))
    return [name for place in lacking for name in _files_at(folder, place, PICKLED, PICKLED_INDEX)]


def _places(folder: Path) -> list[PurePosixPath]:
    """The folders of modules, each once."""
    return [*map(PurePosixPath, dict.fromkeys(module_folders(folder)))]


def _files_at(folder: Path, place: PurePosixPath, weights: str, index: str) -> list[str]:
    """The paths of one module's weights in one format: a single file, and the shards of the index if it is there."""
    path = folder / place / index
    shards = sorted(set(_weight_map(path).values())) if path.is_file() else []
    return [str(place / name) for name in (weights, *shards)]


def module_folders(folder: Path) -> list[str]:
    """The folder of each of sentence-transformers' modules, in their order: "", "1_Pooling"; [""] without modules.

    Raises CheckpointError for one that is outside the model's folder, and as `route_of`.
    """
    return [module_folder(module) for module in route_of(folder).modules] or [""]


def route_of(folder: Path) -> Route:
    """The modules of modules.json, in which the served route of a Router takes its place; none without the file.

    Raises CheckpointError if the file is not a list, and as `read_route`.
    """
    modules = load_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / 'modules.json'} is not a list of modules")
    return read_route(folder, modules)


def module_folder(module: Mapping[str, Json]) -> str:
    """The folder of one entry of modules.json; "." is the model's folder, as model2vec writes it.

    Raises CheckpointError for one that is outside of it.
    """
    path = module.get("path") or ""
    if not isinstance(path, str):
        raise CheckpointError(f"modules.json: path {path!r} is not a text")
    return "" if path in {"", ".", "./"} else str(PurePosixPath(inside(path, "a module of modules.json")))


def local_digest(folder: Path) -> str:
    """A SHA-256, in hex, of small files and of the header and a sample of each tensor of the weights.

    Reading 15 GB of weights would take longer than loading them, so the sample is the first 4 KiB of each tensor:
    further training changes it, but an edit of only the end of a tensor is not noticed. File times and the folder's
    name do not count, so a copy of the folder has the same digest.
    """
    found = {path.relative_to(folder).as_posix() for pattern in SMALL_FILES for path in folder.glob(pattern)}
    names = choose_format(name for name in found.union(weight_files(folder)) if (folder / name).is_file())
    total = hashlib.sha256()
    for name in sorted(names):
        file = hashlib.sha256()
        for part in _sample(folder / name):
            file.update(part)
        total.update(name.encode() + b"\0" + file.digest())
    return total.hexdigest()


def _sample(path: Path) -> Iterable[bytes]:
    """The whole of a small file; of a file of weights, its header and the beginning of each tensor."""
    if path.suffix == ".safetensors":
        return sample(path)
    return sample_pickled(path) if is_weights(path.name) else [path.read_bytes()]


def _entries(path: Path) -> dict[str, Entry]:
    """The tensors of a file of weights. Raises CheckpointError, naming the file, if it is damaged or refused."""
    return entries(path) if path.suffix == ".safetensors" else pickled_entries(path)


def _sharded(index: Path) -> dict[str, Entry]:
    """The tensors of all shards, by name. Raises CheckpointError, naming it, for a shard or tensor that is missing."""
    weight_map = _weight_map(index)
    shards: dict[str, dict[str, Entry]] = {}
    for shard in sorted(set(weight_map.values())):
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index} names {shard}, which is missing")
        shards[shard] = _entries(index.parent / shard)
    counts = Counter(chain.from_iterable(shards.values()))
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{index} says that {name} is in {shard}, which does not have it")
        if counts[name] > 1:
            raise CheckpointError(f"{index}: {name} is in {counts[name]} shards")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _weight_map(path: Path) -> dict[str, str]:
    """The shard of each tensor, from an index. Raises CheckpointError if it is malformed or a shard is outside."""
    index = load_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names")
    suffix = ".safetensors" if path.name == INDEX else ".bin"
    for shard in set(weight_map.values()):
        if not (inside(shard, f"a shard of {path}").endswith(suffix) and is_weights(shard)):
            raise CheckpointError(f"{path} names {shard}, which is not a {suffix} file of weights")
    return weight_map
