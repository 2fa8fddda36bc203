"""Pooling and heads: what follows the transformer. They compute in f32 in every precision, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.checkpoint.folder import COLBERT_LINEAR, SPARSE_LINEAR
from bei_core.engines.torch.folder import head_of
from bei_core.engines.torch.models.pooling import pool, sums
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.errors import UnsupportedModelError
from bei_core.models.heads import ACTIVATION_ALIASES, activation_of, norm_eps, pooling_of, temperature_of
from bei_core.models.kind import Kind
from bei_core.models.modules import LAYER_NORM_EPS, Dense, Module, Normalize, Pooling, Splade, Truncate
from bei_core.models.modules import LayerNorm as LayerNormSpec
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


class F32Linear(nn.Module):
    """A linear layer in f32, x Wᵀ + b. Its sizes come from the loaded tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.bias = None

    def load(self, tensors: Mapping[str, Tensor], name: str, device: torch.device) -> None:
        """Loads `name.weight` and `name.bias`, if they are in `tensors`."""
        for part in ("weight", "bias"):
            if f"{name}.{part}" in tensors:
                value = tensors[f"{name}.{part}"][...].to(device, torch.float32)
                setattr(self, part, nn.Parameter(value, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns f32[..., out] for x f32[..., in]."""
        return F.linear(x, self.weight, self.bias)


class F32Norm(F32Linear):
    """LayerNorm in f32."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns f32[..., H] for x f32[..., H]."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class DenseModule(nn.Module):
    """A Dense module (sentence-transformers 6.2, `base/modules/dense.py`)."""

    def __init__(self, module: Dense) -> None:
        super().__init__()
        self.folder = module.folder
        self.is_residual = module.residual
        self.act = activation(module.activation)
        self.linear, self.residual = F32Linear(), F32Linear()

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Loads the module."""
        self.linear.load(tensors, f"{self.folder}.linear", device)
        self.residual.load(tensors, f"{self.folder}.residual", device)

    def forward(self, rows: Tensor) -> Tensor:
        """Returns f32[B, out] for rows f32[B, in]."""
        y = self.act(self.linear(rows))
        if not self.is_residual:
            return y
        return y + (rows if self.residual.weight is None else self.residual(rows))


class VectorHead(nn.Module):
    """Pooling and the modules after it, except a last Normalize, which belongs to the request (docs/decisions/005).

    Without pooling it is the head of ColBERT: it applies the modules to each token vector, then normalises it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.modes: tuple[PoolingMode, ...] = ()
        modules = spec.modules
        if modules and isinstance(modules[0], Pooling):
            self.modes, modules = modules[0].modes, modules[1:]
        self.after = _modules(modules)
        self.m3 = None if spec.bge_m3 is None else BgeM3Layers()

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Loads the modules."""
        for module in (*self.after, *([] if self.m3 is None else [self.m3])):
            module.load(tensors, device)

    def rows(self, hidden: Tensor, sequences: Sequences) -> Tensor | None:
        """Returns f32[B, D] for token vectors [T, H]; None without pooling."""
        if not self.modes:
            return None
        return self.after(torch.cat([pool(mode, hidden, sequences) for mode in self.modes], -1))

    def tokens(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        """Returns f32[T, E] for token vectors [T, H]; f32[T, E + 1] for bge-m3.

        With pooling, they are the token vectors unchanged. Without it, they are the vectors of ColBERT.
        """
        if self.m3 is not None:
            return self.m3(hidden.float())
        return hidden.float() if self.modes else F.normalize(self.after(hidden.float()), dim=-1)


class BgeM3Layers(nn.Module):
    """bge-m3's ColBERT vectors and weights of terms (FlagEmbedding, `finetune/.../encoder_only/m3/modeling.py`)."""

    def __init__(self) -> None:
        super().__init__()
        self.colbert, self.sparse = F32Linear(), F32Linear()

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Loads the layers."""
        self.colbert.load(tensors, COLBERT_LINEAR, device)
        self.sparse.load(tensors, SPARSE_LINEAR, device)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns f32[T, E + 1] for token vectors f32[T, H]: an L2-normalised vector, then the weight (>= 0)."""
        return torch.cat([F.normalize(self.colbert(hidden), dim=-1), F.relu(self.sparse(hidden))], -1)


class _Function(nn.Module):
    """A module without tensors."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Does nothing."""


class LayerNormModule(nn.Module):
    """A LayerNorm module (sentence-transformers 6.2, `sentence_transformer/modules/layer_norm.py`)."""

    def __init__(self, module: LayerNormSpec) -> None:
        super().__init__()
        self.folder = module.folder
        self.norm = F32Norm(LAYER_NORM_EPS)

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Loads the module."""
        self.norm.load(tensors, f"{self.folder}.norm", device)

    def forward(self, rows: Tensor) -> Tensor:
        """f32[B, D]."""
        return self.norm(rows)


_MODULES: Mapping[type[Module], Callable[[Any], nn.Module]] = {
    Dense: DenseModule,
    LayerNormSpec: LayerNormModule,
    Normalize: lambda module: _Function(lambda rows: F.normalize(rows, dim=-1)),
    Truncate: lambda module: _Function(lambda rows: rows[..., : module.dimensions]),
}


def _modules(modules: Iterable[Module]) -> nn.Sequential:
    """Returns the modules after pooling, in order. Raises UnsupportedModelError for one that is not in `_MODULES`."""
    made: list[nn.Module] = []
    for module in modules:
        if type(module) not in _MODULES:
            raise UnsupportedModelError(f"{type(module).__name__} cannot follow another module")
        made.append(_MODULES[type(module)](module))
    return nn.Sequential(*made)


class LogitsHead(nn.Module):
    """The head of a classifier of sequences or tokens, of a yes/no reranker, or of SPLADE (Formal et al. 2021)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.config, self.classifier, head = spec.config, spec.classifier, head_of(spec)
        self.splade = next((module for module in spec.modules if isinstance(module, Splade)), Splade())
        self.act = activation("identity" if head is None else activation_of(head, spec.config))
        self.pooling = PoolingMode.LAST_TOKEN if head is None else pooling_of(head, spec.config)
        self.temperature = 1.0 if head is None else temperature_of(head, spec.config)
        self.dense, self.norm, self.out = F32Linear(), F32Norm(norm_eps(spec.config)), F32Linear()

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Loads the head."""
        for name, layer in (("dense", self.dense), ("norm", self.norm), ("out", self.out)):
            layer.load(tensors, name, device)

    def _logits(self, x: Tensor) -> Tensor:
        """Returns logits f32[..., C] for vectors [..., H]."""
        x = x.float()
        x = x if self.dense.weight is None else self.act(self.dense(x))
        logits = self.out(x if self.norm.weight is None else self.norm(x))
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


def make_head(spec: ModelSpec) -> Any:
    """Returns the head of a model: a module with the methods `load`, `rows` and `tokens`."""
    return VectorHead(spec) if spec.kind in (Kind.EMBEDDING, Kind.LATE_INTERACTION) else LogitsHead(spec)
