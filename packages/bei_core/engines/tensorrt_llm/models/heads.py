"""Heads after the transformer: pooling and modules, or a sequence classifier. They compute in f32 in every precision.

Plain torch, because quantisation applies them to the transformers model, too, before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.tensorrt_llm.artifact import Facts
from bei_core.engines.tensorrt_llm.models.pooling import Spans, pool
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import ACTIVATION_ALIASES, family_name, heads_of
from bei_core.models.spec import Classifier, Dense, ModelSpec, Normalize, Pooling

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function that transformers calls `name`. Raises UnsupportedModelError listing the known names."""
    name = ACTIVATION_ALIASES.get(name, name)
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted({*_ACTIVATIONS, *ACTIVATION_ALIASES}))
        raise UnsupportedModelError(f"activation {name!r} is not supported; known are {known}")
    return _ACTIVATIONS[name]


class F32Linear(nn.Module):
    """x Wᵀ + b in f32; its sizes are those of the loaded tensors."""

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
        """f32[..., out]."""
        return F.linear(x, self.weight, self.bias)


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
        """f32[B, out] of f32[B, in]."""
        y = self.act(self.linear(rows))
        if not self.is_residual:
            return y
        return y + (rows if self.residual.weight is None else self.residual(rows))


class EmbeddingHead(nn.Module):
    """Pooling and the modules after it, except a last Normalize, which belongs to the request (docs/decisions/005)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        first, *rest = spec.modules
        if not isinstance(first, Pooling):
            raise UnsupportedModelError(
                f"the first module after the transformer must be Pooling, not {type(first).__name__}"
            )
        self.modes = first.modes
        self.after = nn.ModuleList()
        for module in rest:
            if isinstance(module, Dense):
                self.after.append(DenseModule(module))
            elif isinstance(module, Normalize):
                self.after.append(_Normalize())
            else:
                raise UnsupportedModelError(f"{type(module).__name__} cannot follow another module")

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Loads the modules."""
        for module in self.after:
            if isinstance(module, DenseModule):
                module.load(tensors, device)

    def forward(self, hidden: Tensor, ids: Tensor, spans: Spans) -> Tensor:
        """f32[B, D] of token vectors [T, H]; `ids` are not used."""
        rows = torch.cat([pool(mode, hidden, spans) for mode in self.modes], -1)
        for module in self.after:
            rows = module(rows)
        return rows


class _Normalize(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)


class ClassificationHead(nn.Module):
    """The head of a sequence classifier, or of a reranker that compares the logits of "yes" and "no"."""

    def __init__(self, spec: ModelSpec, classifier: Classifier) -> None:
        super().__init__()
        head = heads_of(family_name(spec.architecture)).sequence
        self.dense, self.out = F32Linear(), F32Linear()
        name = "tanh" if head is None else str(spec.config.get(head.activation_of or "") or head.activation)
        self.act = activation(name)
        self.uses_first_token = head is not None and head.pooling == "cls"
        pad_id = spec.config.get("pad_token_id")
        self.pad_id = None if pad_id is None or classifier.answers is not None else int(pad_id)

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Loads the head."""
        self.dense.load(tensors, "dense", device)
        self.out.load(tensors, "out", device)

    def forward(self, hidden: Tensor, ids: Tensor, spans: Spans) -> Tensor:
        """Logits f32[B, C] of token vectors [T, H] and ids i32[T]."""
        # The decoder classifiers of transformers (GenericForSequenceClassification) use the last non-padding token.
        real = None if self.pad_id is None else ids != self.pad_id
        index = spans.first() if self.uses_first_token else spans.last(real)
        rows = hidden[index].float()
        return self.out(rows if self.dense.weight is None else self.act(self.dense(rows)))


def make_head(facts: Facts) -> EmbeddingHead | ClassificationHead:
    """The head of a model."""
    classifier = facts.spec.classifier
    return EmbeddingHead(facts.spec) if classifier is None else ClassificationHead(facts.spec, classifier)
