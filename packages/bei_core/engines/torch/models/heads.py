"""Pooling and heads: what follows the transformer. They compute in f32 in every precision, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bei_core.checkpoint.folder import COLBERT_LINEAR, SPARSE_LINEAR
from bei_core.engines.torch.models.pooling import pool, sums
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.errors import UnsupportedModelError
from bei_core.models.head_tensors import head_of, pooling_modes
from bei_core.models.heads import activation_of, find_activation, norm_eps, temperature_of
from bei_core.models.modules import (
    LAYER_NORM_EPS,
    Dense,
    LayerNorm,
    Module,
    Normalize,
    Pooling,
    Scores,
    Splade,
    Truncate,
)
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec

# Functions of torch.nn.functional. Those of the last row are of Dense modules, with torch.nn's default arguments.
_OF_TORCH = (
    *("tanh", "relu", "silu", "sigmoid", "gelu", "mish"),
    *("elu", "hardswish", "leaky_relu", "relu6", "selu", "softplus", "softsign"),
)
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    **{name: getattr(F, name) for name in _OF_TORCH},
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """As `models.heads.find_activation`."""
    return find_activation(name, _ACTIVATIONS)


class F32Layers(dict[str, Tensor]):
    """Tensors of linear layers and norms that compute in f32, by name."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__({name: tensors[name][...].to(device, torch.float32) for name in tensors})

    def has(self, layer: str) -> bool:
        """Whether the layer has a weight."""
        return f"{layer}.weight" in self

    def linear(self, layer: str, x: Tensor) -> Tensor:
        """Returns x Wᵀ + b, f32[..., out], for x f32[..., in]; the bias is optional."""
        return F.linear(x, self[f"{layer}.weight"], self.get(f"{layer}.bias"))

    def norm(self, layer: str, x: Tensor, eps: float) -> Tensor:
        """Returns LayerNorm f32[..., H] of x f32[..., H]; the bias is optional."""
        return F.layer_norm(x, x.shape[-1:], self[f"{layer}.weight"], self.get(f"{layer}.bias"), eps)


def apply_module(module: Module, rows: Tensor, layers: F32Layers) -> Tensor:
    """Returns f32[..., out]: the output of a module that follows pooling, for rows f32[..., in].

    Source: sentence-transformers 6.2, `base/modules/dense.py` and `sentence_transformer/modules/layer_norm.py`. Raises
    UnsupportedModelError for a module that cannot follow another one.
    """
    match module:
        case Dense(folder=folder):
            y = activation(module.activation)(layers.linear(f"{folder}.linear", rows))
            residual = f"{folder}.residual"
            if not module.residual:
                return y
            return y + (layers.linear(residual, rows) if layers.has(residual) else rows)
        case LayerNorm(folder=folder):
            return layers.norm(f"{folder}.norm", rows, LAYER_NORM_EPS)
        case Normalize():
            return F.normalize(rows, dim=-1)
        case Truncate(dimensions=dimensions):
            return rows[..., :dimensions]
    raise UnsupportedModelError(f"{type(module).__name__} cannot follow another module")


class Head:
    """Pooling and what follows it: modules of sentence-transformers, or the head of a class of transformers.

    A last Normalize is left out, because it belongs to the request (docs/decisions/005). The modules may give the
    scores of a CrossEncoder. Without pooling, what follows applies to the vector of each token.
    """

    layers: F32Layers  # the tensors that `folder.head_tensors` yields; set by `Model.load`

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.modes, head = spec, pooling_modes(spec), head_of(spec)
        first = spec.modules[0]
        after = spec.modules[1:] if isinstance(first, Pooling) else spec.modules
        self.modules = [module for module in after if not isinstance(module, Scores)]
        self.gives_logits = spec.classifier is not None and not isinstance(spec.classifier, Scores)
        self.splade = first if isinstance(first, Splade) else None
        self.act = activation("identity" if head is None else activation_of(head, spec.config))
        self.temperature = 1.0 if head is None else temperature_of(head, spec.config)

    def rows(self, hidden: Tensor, sequences: Sequences) -> Tensor | None:
        """Returns f32[B, D] for token vectors [T, H]: vectors, logits or SPLADE's term weights.

        None for a model that has rows of tokens only.
        """
        if self.splade is not None:
            return self._terms(self.splade, self._logits(hidden.float()), sequences)
        if not self.modes:
            return None
        return self._after(torch.cat([self._pooled(mode, hidden, sequences) for mode in self.modes], -1))

    def tokens(self, hidden: Tensor, sequences: Sequences) -> Tensor | None:
        """Returns f32[T, E] for token vectors [T, H]; None for a classifier of sequences, and for SPLADE.

        They are the token vectors unchanged, the L2-normalised vectors of ColBERT, or the logits of a token classifier.
        For bge-m3 they are f32[T, E + 1]: a vector of ColBERT, then the weight as a term, at least 0 (FlagEmbedding,
        `finetune/.../encoder_only/m3/modeling.py`).
        """
        x, classifier = hidden.float(), self.spec.classifier
        if self.spec.bge_m3 is not None:
            vectors, weights = (self.layers.linear(name, x) for name in (COLBERT_LINEAR, SPARSE_LINEAR))
            return torch.cat([F.normalize(vectors, dim=-1), F.relu(weights)], -1)
        if self.splade is not None or (self.modes and classifier is not None):
            return None
        if self.modes:
            return x
        return F.normalize(self._after(x), dim=-1) if classifier is None else self._logits(x)

    def _pooled(self, mode: PoolingMode | None, hidden: Tensor, sequences: Sequences) -> Tensor:
        if mode is None:  # as the decoder classifiers of transformers (GenericForSequenceClassification)
            return hidden[sequences.last(sequences.ids != int(self.spec.config["pad_token_id"]))].float()
        return pool(mode, hidden, sequences)

    def _after(self, x: Tensor) -> Tensor:
        """Returns f32[..., D], what follows pooling, for vectors f32[..., H]."""
        if self.gives_logits:
            return self._logits(x)
        for module in self.modules:
            x = apply_module(module, x, self.layers)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        """Returns logits f32[..., C] for vectors f32[..., H]."""
        layers = self.layers
        x = self.act(layers.linear("dense", x)) if layers.has("dense") else x
        x = layers.norm("norm", x, norm_eps(self.spec.config)) if layers.has("norm") else x
        logits = layers.linear("out", x)
        return logits if self.temperature == 1 else logits / self.temperature

    def _terms(self, splade: Splade, logits: Tensor, sequences: Sequences) -> Tensor:
        """Returns SPLADE's term weights f32[B, V] for logits f32[T, V] (Formal et al. 2021).

        If the head takes the maximum over tokens, it is computed before the logarithms. The result is the same, because
        logarithms are monotonic.
        """
        x = F.relu(logits if splade.sums else pool("max", logits, sequences))
        for _ in range(splade.num_logs):
            x = torch.log1p(x)
        return sums(x, sequences) if splade.sums else x
