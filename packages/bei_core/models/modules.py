"""The modules after a model's transformer, as data: those of sentence-transformers, and the heads of transformers."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from bei_core.models.pooling import PoolingMode
from bei_core.tasks import Scoring

LAYER_NORM_EPS = 1e-5  # of a LayerNorm module


class Pooling(msgspec.Struct, frozen=True, tag="pooling"):
    """Makes one vector per text from its token vectors; the vectors of several modes are concatenated."""

    modes: tuple[PoolingMode, ...]
    include_prompt: bool = True  # False: pooling leaves out the tokens of a prompt


class Dense(msgspec.Struct, frozen=True, tag="dense"):
    """A linear layer and an activation; its weights are in `<folder>`."""

    folder: str  # relative to the model's folder; "" means the model's own weights
    bias: bool
    activation: str
    residual: bool = False
    tensor: str = "linear"
    per_token: bool = False  # applied to every token, before pooling


class LayerNorm(msgspec.Struct, frozen=True, tag="layer_norm"):
    """LayerNorm; its weights, `norm.weight` and `norm.bias`, are in `<folder>`."""

    folder: str


class Normalize(msgspec.Struct, frozen=True, tag="normalize", omit_defaults=True):
    """L2 normalisation, if another module follows it or it is the only one; else it is `ModelSpec.normalize`."""

    per_token: bool = False  # applied to every token, without pooling


class Truncate(msgspec.Struct, frozen=True, tag="truncate"):
    """Keeps the first `dimensions` of a vector (Matryoshka, Kusupati et al. 2022)."""

    dimensions: int


class Classifier(msgspec.Struct, frozen=True, tag="classifier"):
    """The head of the architecture, which gives a logit for each label in the order of the model's outputs."""

    labels: tuple[str, ...]
    scoring: Scoring
    per_token: bool = False
    # Of a yes/no reranker: the token ids of "no" (None: its logit is 0) and "yes". The logit is "yes" minus "no".
    yes_no_ids: tuple[int | None, int] | None = msgspec.field(default=None, name="answers")


class Scores(Classifier, frozen=True, tag="scores"):
    """Labels and scoring of a CrossEncoder whose logits are the output of the modules before it; it is the last one."""


class Splade(msgspec.Struct, frozen=True, tag="splade"):
    """A weight for each term of the vocabulary: the maximum over tokens of log(1 + relu(logit)) (Formal 2021).

    `sums` takes the sum over tokens instead. `num_logs` is how often x becomes log(1 + x): 2 in OpenSearch's models
    (`log1p_relu` in sentence-transformers).
    """

    sums: bool = False
    num_logs: int = 1


class BgeM3(msgspec.Struct, frozen=True):
    """bge-m3's two linear layers on the vector of each token: its ColBERT vector, and its weight as a term.

    They stand beside the modules (Chen et al. 2024, arXiv:2402.03216; FlagEmbedding,
    `finetune/embedder/encoder_only/m3/modeling.py`). The first token has no ColBERT vector.
    """

    unweighted_ids: tuple[int, ...]  # token ids that are no terms: cls, eos, pad and unk


Module: TypeAlias = Pooling | Dense | LayerNorm | Normalize | Truncate | Classifier | Scores | Splade
