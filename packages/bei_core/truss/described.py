"""Finds a model's spec and the size of its weights for `bei truss init`, without fetching the weights.

The sources, in this order: a folder of this machine, the Hugging Face hub, and, without the hub, the table
`data/known_models.json` of models in Baseten's public examples. Private models need a token for the hub (HF_TOKEN).
"""

from __future__ import annotations

import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import weight_files
from bei_core.checkpoint.hub import fetch_outline
from bei_core.config.settings import Settings
from bei_core.engines.build import check_small_files
from bei_core.errors import CheckpointError
from bei_core.models.spec import ModelSpec, read_spec

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class Described(NamedTuple):
    """A model without its weights."""

    spec: ModelSpec
    num_params: int
    weight_bytes: int  # size of all weight files


class Unknown(NamedTuple):
    """A model that none of the sources knows."""

    reason: str


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model of the table."""

    name: str
    architecture: str = msgspec.field(name="class")
    shape: str  # a key of the table's `shapes`: the part of config.json that several models share
    params_m: float  # millions of weights
    dtype: str  # of the weights as published
    config: dict[str, Any] = {}  # entries of config.json that differ from the shape


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shapes: dict[str, dict[str, Any]]
    models: list[_Known]


def describe(settings: Settings, endpoint: str | None = None) -> Described | Unknown:
    """Returns the model that the settings name. `endpoint` is the hub's address; None means HF_ENDPOINT.

    Raises UnsupportedModelError, CheckpointError or ConfigError if its files show that BEI cannot serve it.
    """
    name = settings.model_id or ""
    folder = Path(name)
    if folder.is_dir():
        num_bytes = sum((folder / file).stat().st_size for file in weight_files(folder) if (folder / file).is_file())
        return _read(Checkpoint(folder, name, ""), num_bytes)
    if "://" in name or name.count("/") != 1:
        return Unknown(f"the files of {name} are not on this machine")
    try:
        options = {"endpoint": endpoint, "token": settings.hf_token, "cache_dir": settings.huggingface_hub_cache}
        outline = fetch_outline(name, settings.revision, {**options, "local_files_only": False})
    except CheckpointError as error:
        known = next((model for model in _table().models if model.name == name), None)
        return Unknown(str(error)) if known is None else _from_table(known)
    return _read(outline.checkpoint, outline.weight_bytes)


def _read(checkpoint: Checkpoint, weight_bytes: int) -> Described:
    """Returns a model from its small files. Raises the errors that a server raises before it fetches weights."""
    check_small_files(checkpoint.folder)
    spec = read_spec(checkpoint)
    dtype = str(spec.config.get("dtype") or spec.config.get("torch_dtype") or "float32")
    return Described(spec, weight_bytes // _ITEM_BYTES.get(dtype, 4), weight_bytes)


def _from_table(model: _Known) -> Described:
    config = {"architectures": [model.architecture], **_table().shapes[model.shape], **model.config}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(msgspec.json.encode(config))
        spec = read_spec(Checkpoint(Path(folder), model.name, ""))
    num_params = round(model.params_m * 1e6)
    return Described(spec, num_params, num_params * _ITEM_BYTES[model.dtype])


@cache
def _table() -> _Table:
    return msgspec.json.decode(files("bei_core").joinpath("data/known_models.json").read_bytes(), type=_Table)
