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
from bei_core.models.head_tensors import head_of
from bei_core.models.heads import ACTIVATION_ALIASES, activation_of, norm_eps, pooling_of, temperature_of
from bei_core.models.kind import Kind
from bei_core.models.modules import LAYER_NORM_EPS, Dense, LayerNorm, Module, Normalize, Pooling, Splade, Truncate
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
    """The activation function that transformers calls `name`. Raises UnsupportedModelError listing the known names."""
    name = ACTIVATION_ALIASES.get(name, name)
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted({*_ACTIVATIONS, *ACTIVATION_ALIASES}))
        raise UnsupportedModelError(f"activation {name!r} is not supported; known are {known}")
    return _ACTIVATIONS[name]


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


class VectorHead:
    """Pooling and the modules after it, except a last Normalize, which belongs to the request (docs/decisions/005).

    Without pooling it is the head of ColBERT: it applies the modules to each token vector, then normalises it.
    """

    layers: F32Layers  # the tensors that `folder.head_tensors` yields; set by `Model.load`

    def __init__(self, spec: ModelSpec) -> None:
        self.modes: tuple[PoolingMode, ...] = ()
        self.modules, self.is_m3 = spec.modules, spec.bge_m3 is not None
        if self.modules and isinstance(self.modules[0], Pooling):
            self.modes, self.modules = self.modules[0].modes, self.modules[1:]

    def rows(self, hidden: Tensor, sequences: Sequences) -> Tensor | None:
        """Returns f32[B, D] for token vectors [T, H]; None without pooling."""
        if not self.modes:
            return None
        return self._after(torch.cat([pool(mode, hidden, sequences) for mode in self.modes], -1))

    def tokens(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        """Returns f32[T, E] for token vectors [T, H].

        With pooling, they are the token vectors unchanged. Without it, they are the vectors of ColBERT. For bge-m3 they
        are f32[T, E + 1]: an L2-normalised ColBERT vector, then the weight as a term, at least 0 (FlagEmbedding,
        `finetune/.../encoder_only/m3/modeling.py`).
        """
        x = hidden.float()
        if self.is_m3:
            vectors, weights = (self.layers.linear(name, x) for name in (COLBERT_LINEAR, SPARSE_LINEAR))
            return torch.cat([F.normalize(vectors, dim=-1), F.relu(weights)], -1)
        return x if self.modes else F.normalize(self._after(x), dim=-1)

    def _after(self, rows: Tensor) -> Tensor:
        for module in self.modules:
            rows = apply_module(module, rows, self.layers)
        return rows


class LogitsHead:
    """The head of a classifier of sequences or tokens, of a yes/no reranker, or of SPLADE (Formal et al. 2021)."""

    layers: F32Layers  # as in VectorHead

    def __init__(self, spec: ModelSpec) -> None:
        self.config, self.classifier, head = spec.config, spec.classifier, head_of(spec)
        self.splade = next((module for module in spec.modules if isinstance(module, Splade)), Splade())
        self.act = activation("identity" if head is None else activation_of(head, spec.config))
        self.pooling = PoolingMode.LAST_TOKEN if head is None else pooling_of(head, spec.config)
        self.temperature = 1.0 if head is None else temperature_of(head, spec.config)

    def _logits(self, x: Tensor) -> Tensor:
        """Returns logits f32[..., C] for vectors [..., H]."""
        x, layers = x.float(), self.layers
        x = self.act(layers.linear("dense", x)) if layers.has("dense") else x
        logits = layers.linear("out", layers.norm("norm", x, norm_eps(self.config)) if layers.has("norm") else x)
        return logits if self.temperature == 1 else logits / self.temperature

    def rows(self, hidden: Tensor, sequences: Sequences) -> Tensor | None:
        """Returns logits f32[B, C], or SPLADE's term weights f32[B, V], for token vectors [T, H].

        None for a token classifier.
        """
        if self.classifier is None:
            return self._terms(self._logits(hidden), sequences)
        return None if self.classifier.per_token else self._logits(self._pooled(hidden, sequences))

    def tokens(self, hidden: Tensor, sequences: Sequences) -> Tensor | None:
        """Returns logits f32[T, C] for a token classifier, else None."""
        return self._logits(hidden) if self.classifier is not None and self.classifier.per_token else None

    def _terms(self, logits: Tensor, sequences: Sequences) -> Tensor:
        """Returns SPLADE's term weights f32[B, V] for logits f32[T, V].

        If the head takes the maximum over tokens, it is computed before the logarithms. The result is the same, because
        logarithms are monotonic.
        """
        x = F.relu(logits if self.splade.sums else pool("max", logits, sequences))
        for _ in range(self.splade.num_logs):
            x = torch.log1p(x)
        return sums(x, sequences) if self.splade.sums else x

    def _pooled(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        if self.pooling is None:  # as the decoder classifiers of transformers (GenericForSequenceClassification)
            return hidden[sequences.last(sequences.ids != int(self.config["pad_token_id"]))]
        return pool(self.pooling, hidden, sequences)


def make_head(spec: ModelSpec) -> VectorHead | LogitsHead:
    """Returns the head of a model."""
    return VectorHead(spec) if spec.kind in (Kind.EMBEDDING, Kind.LATE_INTERACTION) else LogitsHead(spec)
