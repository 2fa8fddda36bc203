"""A model's files: a local folder, or a Hugging Face repository at one commit; weights from safetensors only.

The format is read here rather than by the safetensors package because its numpy side has no bfloat16, and a header is
little to read: an 8-byte little-endian length, JSON that gives each tensor's dtype, shape and offsets, then the data
(https://github.com/huggingface/safetensors#format). What its own reader refuses is refused here too: offsets that
overlap, leave holes or run past the end, sizes that do not match, duplicate names.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from bei_core.errors import CheckpointError

Array: TypeAlias = NDArray[Any]
Json: TypeAlias = Any  # whatever a file holds

# What a repository is asked for besides weights. Never pickles (*.bin, *.pt), other formats, or code.
_SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "model.safetensors.index.json",
    "*/config.json",
    "*/model.safetensors.index.json",
)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT = (
    "BEI reads no pickles, which can run code; convert the model once, where it is trusted: "
    "transformers.AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
)

# numpy has no bfloat16 and no 8-bit floats: their bits come back as unsigned integers.
_DTYPES = {
    "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
_SAMPLE = 4096  # bytes of each tensor in a local folder's digest


@dataclass(frozen=True)
class Checkpoint:
    """A model folder at an exact revision."""

    folder: Path
    source: str  # the repository, or the folder's absolute path
    revision: str  # the commit, or `local_digest` of a local folder

    def read_json(self, name: str, *, required: bool = True) -> Json:
        """What a JSON file of the folder holds; None for one that is missing and not required.

        Raises CheckpointError naming a file that is missing, malformed or outside the folder.
        """
        path = self.folder / _inside(name, "a file of the model")
        if path.is_file():
            return _load_json(path)
        if required:
            raise CheckpointError(f"{self.source} has no {name}")
        return None

    def tensors(self, folder: str = "") -> Tensors:
        """The weights of the folder, or of one of its modules' folders, not yet read.

        Raises CheckpointError naming a file that is missing or damaged.
        """
        place = self.folder / _inside(folder, "a module's folder") if folder else self.folder
        if (place / _WEIGHTS).is_file():
            return Tensors(_entries(place / _WEIGHTS), source=f"{place / _WEIGHTS}")
        if (place / _INDEX).is_file():
            return Tensors(_sharded(place), source=f"{place / _INDEX}")
        pickles = sorted(path.name for pattern in _PICKLES for path in place.glob(pattern))
        found = f" but {', '.join(pickles)}" if pickles else ""
        where = f"{self.source}/{folder}" if folder else self.source
        raise CheckpointError(f"{where} has no {_WEIGHTS}{found}. {_CONVERT}")


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # byte of the file
    file: mmap.mmap


class Tensors(Mapping[str, Array]):
    """Tensors by name, each a read-only view of the mapped file: nothing is read before it is used."""

    def __init__(self, entries: Mapping[str, _Entry], *, source: str) -> None:
        self._entries = entries
        self._source = source

    def __getitem__(self, name: str) -> Array:
        """The tensor as stored; bfloat16 as the u16 of its bits, 8-bit floats as u8. Raises KeyError."""
        entry = self._entries[name]
        kind = np.dtype(_DTYPES[entry.dtype])
        array: Array = np.ndarray(entry.shape, kind, buffer=entry.file, offset=entry.start)
        return np.require(array, requirements="A")  # the format aligns nothing: a copy where it must be

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._entries)

    def dtype(self, name: str) -> str:
        """The dtype in safetensors' words: F32, BF16… Raises CheckpointError for a name that is not there."""
        return self._entry(name).dtype

    def raw(self, name: str) -> Array:
        """As `self[name]`, but raises CheckpointError naming the file and the nearest name."""
        self._entry(name)
        return self[name]

    def f32(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32: a view where it is stored so, else an exact copy (F64 is rounded).

        Raises CheckpointError for a name that is not there or a tensor that is not floating point.
        """
        dtype, array = self.dtype(name), self.raw(name)
        if dtype == "BF16":
            wide = array.astype(np.uint32)
            wide <<= np.uint32(16)  # bfloat16 is the upper half of a float32
            return wide.view(np.float32)
        if dtype in {"F16", "F32", "F64"}:
            return array.astype(np.float32, copy=False)
        raise CheckpointError(f"{self._source}: {name} is {dtype}, not one of BF16, F16, F32, F64")

    def _entry(self, name: str) -> _Entry:
        """Where a tensor lies. Raises CheckpointError for a name that is not there."""
        if name not in self._entries:
            nearest = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; the nearest is {nearest[0]}" if nearest else ""
            raise CheckpointError(f"{self._source} has no tensor {name}{hint}")
        return self._entries[name]


def resolve(
    model_id: str,
    revision: str | None = None,
    *,
    token: str | None = None,
    offline: bool | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Checkpoint:
    """The files of a local folder as they are, or of a Hugging Face repository at the commit that `revision` names now.

    Where None, `offline`, `endpoint` and `cache_dir` are huggingface_hub's: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HUB_CACHE.
    A folder has no revisions, so there `revision` is not looked at: a TEI launch line may carry one.
    Raises CheckpointError that says what to do.
    """
    place = Path(model_id).expanduser()
    if place.is_dir():
        try:
            return Checkpoint(folder=place, source=str(place.absolute()), revision=local_digest(place))
        except OSError as fault:  # the digest opens every file that is needed later
            raise CheckpointError(f"cannot read {fault.filename}: {fault.strerror}") from fault
    if "://" in model_id:
        raise CheckpointError(
            f"{model_id.split('?')[0]}: {model_id.split(':')[0]} checkpoints cannot be fetched yet; supported are "
            "LOCAL (a folder) and HF (a Hugging Face repository)"
        )
    if place.exists() or model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1:
        raise CheckpointError(f"{model_id} is not a folder; give a model's folder or a Hugging Face repository")
    options = {"token": token, "local_files_only": bool(offline), "endpoint": endpoint, "cache_dir": cache_dir}
    folder = _download(model_id, revision or "main", _SMALL_FILES, options)
    # The second call names the commit, lest the branch move between the two.
    _download(model_id, folder.name, _weight_files(folder), options)
    return Checkpoint(folder=folder, source=model_id, revision=folder.name)


def _download(repo: str, revision: str, patterns: Iterable[str], options: Mapping[str, Any]) -> Path:
    """The cache's folder of the commit, with the files that match. Raises CheckpointError."""
    # Imported here because it takes a third of a second, which a local folder need not wait for.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), **options))
    except Exception as fault:  # its transport's errors too, and the transport has changed twice
        raise CheckpointError(f"{repo}: {_advice(fault, revision)}") from fault


def _advice(fault: Exception, revision: str) -> str:
    """What an operator can do about an error of huggingface_hub."""
    from huggingface_hub import errors

    said = str(fault).strip().partition("\n")[0]
    if isinstance(fault, errors.HFValidationError):
        return "neither a folder nor the name of a Hugging Face repository, which is owner/name"
    if isinstance(fault, errors.GatedRepoError):
        return "is gated; accept its terms on the hub, and give a token that may read it (HF_TOKEN, hf_token)"
    if isinstance(fault, errors.RepositoryNotFoundError):
        return "no such repository on the hub, or a private one, which needs a token (HF_TOKEN, hf_token)"
    if isinstance(fault, errors.RevisionNotFoundError):
        return f"has no branch, tag or commit {revision}"
    if isinstance(fault, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        away = "the hub is out of reach or switched off (HF_HUB_OFFLINE)"
        return f"revision {revision} is not (all) cached, and {away}; fetch it once, or give a local folder. {said}"
    return f"could not be fetched: {type(fault).__name__}: {said}"


def _weight_files(folder: Path) -> list[str]:
    """The safetensors that the model may have by the small files of its folder, whether or not they are there."""
    names: list[str] = []
    for place in _places(folder):
        names.append(f"{place}{_WEIGHTS}")
        if (folder / place / _INDEX).is_file():
            names += [f"{place}{shard}" for shard in sorted(set(_weight_map(folder / place / _INDEX).values()))]
    return names


def _places(folder: Path) -> list[str]:
    """Where weights may lie: the folder itself ("") and sentence-transformers' modules ("2_Dense/")."""
    modules = _load_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / 'modules.json'} is not a list of modules")
    paths = {str(module["path"]) for module in modules if module.get("path")}
    return ["", *(f"{_inside(path, 'a module of modules.json')}/" for path in sorted(paths))]


def local_digest(folder: Path) -> str:
    """The hex SHA-256 of a model folder's files: small ones whole, of weights the header and a sample of each tensor.

    Reading 15 GB of weights would take longer than loading them. The sample is the first 4 KiB of every tensor, so that
    weights trained further under the same header, which differ everywhere, have another digest; an edit of a tensor's
    tail alone goes unseen. Neither times nor the folder's name count: a copy of a folder is the same model.
    """
    found = {path.relative_to(folder).as_posix() for pattern in _SMALL_FILES for path in folder.glob(pattern)}
    names = sorted(name for name in found.union(_weight_files(folder)) if (folder / name).is_file())
    total = hashlib.sha256()
    for name in names:
        parts = _sample(folder / name) if name.endswith(".safetensors") else [(folder / name).read_bytes()]
        file = hashlib.sha256()
        for part in parts:
            file.update(part)
        total.update(name.encode() + b"\0" + file.digest())  # of fixed length: no two folders run together
    return total.hexdigest()


def _sample(path: Path) -> Iterator[bytes]:
    """The size of a safetensors file, its header, and the beginning of each tensor."""
    header, begin = _header(path)
    yield path.stat().st_size.to_bytes(8, "little")
    with path.open("rb") as file:
        yield file.read(begin)
        for info in header.values():
            file.seek(begin + info.data_offsets[0])
            yield file.read(min(_SAMPLE, info.data_offsets[1] - info.data_offsets[0]))


def _sharded(folder: Path) -> dict[str, _Entry]:
    """The tensors of an index, from its shards. Raises CheckpointError naming a shard or tensor that is missing."""
    weight_map = _weight_map(folder / _INDEX)
    shards: dict[str, dict[str, _Entry]] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / _INDEX} names {shard}, which is missing")
        shards[shard] = _entries(folder / shard)
    counts = Counter(chain.from_iterable(shards.values()))
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{folder / _INDEX} says that {name} is in {shard}, which does not have it")
        if counts[name] > 1:
            raise CheckpointError(f"{folder / _INDEX}: {name} is in {counts[name]} shards")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name to shard, of an index. Raises CheckpointError for one that is malformed or leaves its folder."""
    index = _load_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names")
    for shard in set(weight_map.values()):
        if not _inside(shard, f"a shard of {path}").endswith(".safetensors"):
            raise CheckpointError(f"{path} names {shard}, which is not safetensors. {_CONVERT}")
    return weight_map


class _Info(msgspec.Struct, frozen=True):
    """One tensor of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]  # bytes after the header


def _entries(path: Path) -> dict[str, _Entry]:
    """Where each tensor of a file lies. Raises CheckpointError naming a file that is damaged."""
    header, begin = _header(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: _Entry(dtype=info.dtype, shape=info.shape, start=begin + info.data_offsets[0], file=mapped)
        for name, info in header.items()
    }


def _header(path: Path) -> tuple[dict[str, _Info], int]:
    """The tensors of a safetensors file, in the order of their data, and the byte at which the data begin."""
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix == b"version ":
            raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run git lfs pull in its repository")
        length, size = int.from_bytes(prefix, "little"), path.stat().st_size
        if len(prefix) < 8 or length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path} is truncated or no safetensors file: {size} bytes")
        header = _parse_json(file.read(length), path)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    infos = {name: _info(info, name, path) for name, info in header.items() if name != "__metadata__"}
    infos = dict(sorted(infos.items(), key=lambda item: item[1].data_offsets))
    _check_layout(infos, path, size - 8 - length)
    return infos, 8 + length


def _info(value: object, name: str, path: Path) -> _Info:
    """One tensor of a header, of a dtype that is known and a size that matches. Raises CheckpointError."""
    try:
        info = msgspec.convert(value, _Info)
    except msgspec.ValidationError as fault:
        raise CheckpointError(f"{path}: the header's {name}: {fault}") from fault
    if info.dtype not in _DTYPES:
        raise CheckpointError(f"{path}: {name} is {info.dtype}; known are {', '.join(_DTYPES)}")
    begin, end = info.data_offsets
    size = math.prod(info.shape) * np.dtype(_DTYPES[info.dtype]).itemsize
    if min((begin, *info.shape)) < 0 or end - begin != size:
        raise CheckpointError(f"{path}: {name} is {info.dtype} {list(info.shape)} but takes {begin} to {end}")
    return info


def _check_layout(infos: Mapping[str, _Info], path: Path, size: int) -> None:
    """Raises CheckpointError unless the tensors, in order, fill `size` bytes of data without holes or overlaps."""
    position = 0
    for name, info in infos.items():
        begin, end = info.data_offsets
        if begin != position:
            raise CheckpointError(f"{path}: {name} begins at {begin}, not at {position} where the one before ends")
        position = end
    if position > size:
        raise CheckpointError(f"{path} is truncated: {position - size} of its {position} bytes of tensors are missing")
    if position < size:
        raise CheckpointError(f"{path} has {size - position} bytes that belong to no tensor")


def _inside(name: str, what: str) -> str:
    """A relative name that stays in its folder. Raises CheckpointError: the name may come from a downloaded file."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{what} is {name!r}, which is not inside the model's folder")
    return name


def _load_json(path: Path) -> Json:
    """What a JSON file holds. Raises CheckpointError naming a file that is malformed."""
    return _parse_json(path.read_bytes(), path)


def _parse_json(text: bytes, path: Path) -> Json:
    """JSON as Python reads it, with the NaN and Infinity that transformers writes. Raises CheckpointError."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{path} is not JSON: {fault}") from fault


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different. Raises ValueError: which of two is meant, nobody can tell."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found
