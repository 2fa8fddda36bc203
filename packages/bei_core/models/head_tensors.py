"""The head of a model, and where its checkpoint has the tensors of modules and head; all engines read them here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bei_core.checkpoint import Checkpoint, Tensors
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import family_of
from bei_core.models.heads import Head, output_bias, output_weight, pooling_of, yes_no_row
from bei_core.models.kind import Kind
from bei_core.models.modules import Classifier, Dense, LayerNorm, Pooling, Scores
from bei_core.models.pooling import PoolingMode
from bei_core.models.sentence.modules import check_dense_sizes
from bei_core.models.spec import ModelSpec


class StoredAt(NamedTuple):
    """Where a tensor is stored: the tensors of a folder, and its name among them."""

    tensors: Tensors
    name: str


def head_of(spec: ModelSpec) -> Head | None:
    """Returns the layers of the head of a classifier or of SPLADE.

    None for an embedding model, for a model with token vectors (ColBERT), for a reranker that answers "yes" or "no",
    and for a CrossEncoder whose modules give the scores. Raises UnsupportedModelError if the family has no such head.
    """
    classifier, heads = spec.classifier, family_of(spec.architecture).heads
    if spec.kind in (Kind.EMBEDDING, Kind.LATE_INTERACTION) or isinstance(classifier, Scores):
        return None
    if classifier is not None and classifier.yes_no_ids is not None:
        return None
    head = heads.vocabulary if classifier is None else heads.token if classifier.per_token else heads.sequence
    if head is None:
        raise UnsupportedModelError(f"the head of {spec.architecture} is not supported")
    return head


def pooling_modes(spec: ModelSpec) -> tuple[PoolingMode | None, ...]:
    """Returns how token vectors become the vector of a sequence; None as in `models.heads.pooling_of`.

    Empty if they do not: a model has rows of tokens only, or is SPLADE. Raises as `head_of`.
    """
    first, head = spec.modules[0], head_of(spec)
    if isinstance(first, Pooling):
        return first.modes
    if not isinstance(first, Classifier) or first.per_token:
        return ()
    return (PoolingMode.LAST_TOKEN if head is None else pooling_of(head, spec.config),)


def find_head_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, StoredAt]:
    """Returns the tensors of modules and head by the engines' names of the layers.

    Of a head they are those of the layers `dense`, `norm` and `out`, and of a module in `FOLDER` those of the layers
    `FOLDER.linear`, `FOLDER.residual` and `FOLDER.norm`. A tensor that the layer needs is also here if the checkpoint
    lacks it. Raises UnsupportedModelError as `head_of`, and CheckpointError as `output_weight` and `check_dense_sizes`.
    """
    found, head = dict[str, StoredAt](), head_of(spec)
    if head is not None:
        tensors = checkpoint.tensors()
        found |= {name: StoredAt(tensors, stored) for name, stored in _of_head(tensors, spec, head)}
    for module in spec.modules:
        if isinstance(module, Dense):
            tensors = checkpoint.tensors(module.folder)
            for part in ("weight", "bias") if module.bias else ("weight",):
                found[f"{module.folder}.linear.{part}"] = StoredAt(tensors, f"{module.tensor}.{part}")
            if module.folder:
                weight = f"{module.tensor}.weight"
                check_dense_sizes(checkpoint, module.folder, weight, tensors.raw(weight).shape)
            if "residual.weight" in tensors:
                found[f"{module.folder}.residual.weight"] = StoredAt(tensors, "residual.weight")
        elif isinstance(module, LayerNorm):
            for name in ("norm.weight", "norm.bias"):
                found[f"{module.folder}.{name}"] = StoredAt(checkpoint.tensors(module.folder), name)
    return found


def find_yes_no_row(checkpoint: Checkpoint, spec: ModelSpec) -> npt.NDArray[np.float32] | None:
    """Returns f32[1, H] as `models.heads.yes_no_row`; None for a model that is no yes/no reranker."""
    if spec.classifier is None or spec.classifier.yes_no_ids is None:
        return None
    words = family_of(spec.architecture).anchors
    return yes_no_row(checkpoint.tensors(), spec.classifier.yes_no_ids, words, spec.config)


def _of_head(tensors: Tensors, spec: ModelSpec, head: Head) -> Iterator[tuple[str, str]]:
    """Yields (engines' name, name in the checkpoint). SPLADE's matrix may be the table of word embeddings."""
    layers = {"dense": head.dense_in(tensors), "norm": head.norm, "out": head.out}
    for layer, part in product(layers, ("weight", "bias")):
        name = f"{layers[layer]}.{part}"
        if name == f"{head.out}.bias":
            name = output_bias(tensors, head) or name
        if name == f"{head.out}.weight" and spec.kind is Kind.SPARSE:
            name = output_weight(tensors, name, family_of(spec.architecture).anchors, spec.config)
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        name = name if name in tensors else old
        if layers[layer] is not None and (part == "weight" or name in tensors):
            yield f"{layer}.{part}", name
