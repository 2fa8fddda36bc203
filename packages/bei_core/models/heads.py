"""The heads of transformers' classes: the names of their layers, and how they are computed."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from bei_core.checkpoint import Tensors
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.configuration import Config, read_number
from bei_core.models.pooling import PoolingMode

FunctionT = TypeVar("FunctionT")

# Names of activations in transformers' `ACT2FN`, to the names in the engines' tables of activations.
ACTIVATION_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "gelu_tanh"),
    "gelu_python": "gelu",
    "swish": "silu",
    "linear": "identity",
}


def find_activation(name: str, known: Mapping[str, FunctionT]) -> FunctionT:
    """Returns the activation function that transformers calls `name`, from an engine's table of `known` ones.

    Raises UnsupportedModelError listing the names.
    """
    name = ACTIVATION_ALIASES.get(name, name)
    if name not in known:
        names = ", ".join(sorted({*known, *ACTIVATION_ALIASES}))
        raise UnsupportedModelError(f"activation {name!r} is not supported; known are {names}")
    return known[name]


@dataclass(frozen=True, slots=True)
class Head:
    """A head: a linear layer `out`, maybe after a dense layer, an activation and a norm. Layers are given by name."""

    out: str
    dense: str | None = None
    activation: str = "tanh"
    activation_of: str | None = None  # key in config.json that names the activation; None: `activation` always
    norm: str | None = None
    bias: str | None = None  # tensor of the bias of `out`, if it is not "{out}.bias"
    # What a sequence classifier reads: the vector of one token, or a pooled vector. "classifier_pooling" and "pooling"
    # are the keys under which config.json names the pooling.
    reads: Literal["cls", "classifier_pooling", "pooling", "last non-padding token"] = "cls"
    temperature: str | None = None  # key in config.json of a number that the logits are divided by
    dense_elsewhere: str | None = None  # the name of `dense` in files that another class of the family wrote

    def dense_in(self, tensors: Container[str]) -> str | None:
        """Returns the name that `dense` has in a checkpoint; None for a head without it."""
        is_elsewhere = self.dense_elsewhere is not None and f"{self.dense_elsewhere}.weight" in tensors
        return self.dense_elsewhere if is_elsewhere else self.dense


@dataclass(frozen=True, slots=True)
class FamilyHeads:
    """The heads of a family; None if transformers has no such class for the family."""

    sequence: Head | None = None  # ...ForSequenceClassification
    token: Head | None = Head("classifier")  # ...ForTokenClassification
    vocabulary: Head | None = None  # ...ForMaskedLM


_NVIDIA_POOLINGS = {"avg": PoolingMode.MEAN, "cls": PoolingMode.CLS, "last": PoolingMode.LAST_TOKEN}


def pooling_of(head: Head, config: Config) -> PoolingMode | None:
    """Returns how a sequence classifier pools; None if it reads the last token whose id is not `pad_token_id`.

    Raises UnsupportedModelError for an unknown pooling of NVIDIA's bidirectional Llama.
    """
    if head.reads == "classifier_pooling":
        return PoolingMode.named(str(config.get("classifier_pooling", "cls")))
    if head.reads == "pooling":
        name = str(config.get("pooling", "avg"))
        if name not in _NVIDIA_POOLINGS:
            known = ", ".join(_NVIDIA_POOLINGS)
            raise UnsupportedModelError(f"config.json: pooling {name!r} is not supported; known are {known}")
        return _NVIDIA_POOLINGS[name]
    if head.reads == "cls":
        return PoolingMode.CLS
    return PoolingMode.LAST_TOKEN if config.get("pad_token_id") is None else None


def activation_of(head: Head, config: Config) -> str:
    """Returns transformers' name of the activation after the head's dense layer."""
    return str(config.get(head.activation_of or "") or head.activation)


def temperature_of(head: Head, config: Config) -> float:
    """Returns the number by which the logits are divided; 1 if config.json has none."""
    return read_number(config, head.temperature or "", 0) or 1


def norm_eps(config: Config) -> float:
    """Returns the epsilon of the head's LayerNorm."""
    return read_number(config, "norm_eps", 0) or read_number(config, "layer_norm_eps", 0) or 1e-12


def yes_no_row(
    tensors: Tensors, ids: tuple[int | None, int], words: Sequence[str], config: Config
) -> npt.NDArray[np.float32]:
    """Returns f32[1, H]: the row of lm_head for "yes" minus the row for "no".

    `ids` are the token ids of "no" (None: the row is 0) and of "yes". `words` are as for `output_weight`. Raises
    CheckpointError as that, and for an id that the matrix does not have.
    """
    table, (no, yes) = tensors.f32(output_weight(tensors, "lm_head.weight", words, config)), ids
    if wrong := [each for each in ids if each is not None and not 0 <= each < len(table)]:
        raise CheckpointError(f"the answer has the token id {wrong[0]}, but the vocabulary has {len(table)} tokens")
    return np.ascontiguousarray((table[yes] if no is None else table[yes] - table[no])[None])


def output_weight(tensors: Container[str], name: str, words: Sequence[str], config: Config) -> str:
    """Returns the name of the matrix f32[V, H] that gives logits: `name`, else the word embeddings of a tied model.

    A file of a tied model may have both. Then `name` is used, as in transformers 5, also if they differ. `words` are
    the names under which there may be word embeddings. Raises CheckpointError if the file lacks the matrix.
    """
    if name not in tensors and not config.get("tie_word_embeddings", True):
        raise CheckpointError(
            f"the checkpoint has no tensor {name}, and tie_word_embeddings is false in config.json or by the class; "
            "save the model with its head, or set it to true if the word embeddings are the matrix of the head"
        )
    return first_of(tensors, (name, *words))


def output_bias(tensors: Container[str], head: Head) -> str | None:
    """Returns the name of the bias of the head's last layer; None if it has none.

    Where a file has both `head.bias` and the layer's own, they are tied and equal, else the layer's own is used.
    """
    return next((name for name in (f"{head.out}.bias", head.bias) if name is not None and name in tensors), None)


def first_of(tensors: Container[str], names: Sequence[str]) -> str:
    """Returns the first of the names that the checkpoint has. Raises CheckpointError if it has none."""
    found = next((name for name in names if name in tensors), None)
    if found is None:
        raise CheckpointError(f"the checkpoint has none of the tensors {', '.join(names)}")
    return found
