"""What stands on top of a transformer: pooling and modules, or a sequence classifier's head. In f32, whatever is below.

Plain torch, so that the transformers model that is quantised gets its rows by the same code as the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.tensorrt_llm.artifact import Facts, family_name
from bei_core.engines.tensorrt_llm.models.pooling import Spans, pool
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import heads_of
from bei_core.models.spec import Classifier, Dense, ModelSpec, Normalize, Pooling

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_python_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that config.json names. Raises UnsupportedModelError listing the known ones."""
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation {name!r} is not supported; known are {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


class Affine(nn.Module):
    """x Wᵀ + b in f32, whose sizes are those of the tensors it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.bias = None

    def load(self, tensors: Mapping[str, Tensor], name: str, device: torch.device) -> None:
        """Takes `name.weight`, and `name.bias` where there is one."""
        for part in ("weight", "bias"):
            if f"{name}.{part}" in tensors:
                value = tensors[f"{name}.{part}"][...].to(device, torch.float32)
                setattr(self, part, nn.Parameter(value, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """f32[..., out]."""
        return F.linear(x, self.weight, self.bias)


class DenseModule(nn.Module):
    """A sentence-transformers Dense module."""

    def __init__(self, module: Dense) -> None:
        super().__init__()
        self.folder = module.folder
        self.is_residual = module.residual
        self.act = activation(module.activation)
        self.linear, self.residual = Affine(), Affine()

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes the module's tensors."""
        self.linear.load(tensors, f"{self.folder}.linear", device)
        self.residual.load(tensors, f"{self.folder}.residual", device)

    def forward(self, rows: Tensor) -> Tensor:
        """f32[B, out]."""
        y = self.act(self.linear(rows))
        if not self.is_residual:
            return y
        return y + (rows if self.residual.weight is None else self.residual(rows))


class Rows(nn.Module):
    """Pooling and the modules after it, but a last Normalize: that belongs to the request (decisions/005)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        first, *rest = spec.modules
        if not isinstance(first, Pooling):
            raise UnsupportedModelError(f"{type(first).__name__} cannot come first")
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
        """Takes the modules' tensors."""
        for module in self.after:
            if isinstance(module, DenseModule):
                module.load(tensors, device)

    def forward(self, hidden: Tensor, ids: Tensor, spans: Spans) -> Tensor:
        """f32[B, D] of token vectors [T, H]."""
        rows = torch.cat([pool(mode, hidden, spans) for mode in self.modes], -1)
        for module in self.after:
            rows = module(rows)
        return rows


class _Normalize(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)


class Logits(nn.Module):
    """A sequence classifier's head, or the difference of two words' logits."""

    def __init__(self, spec: ModelSpec, classifier: Classifier) -> None:
        super().__init__()
        head = heads_of(family_name(spec.architecture)).sequence
        self.dense, self.out = Affine(), Affine()
        named = "tanh" if head is None else str(spec.config.get(head.activation_of or "") or head.activation)
        self.act = activation(named)
        self.takes_first = head is not None and head.takes == "cls"
        pad_id = spec.config.get("pad_token_id")
        self.pad_id = None if pad_id is None or classifier.answers is not None else int(pad_id)

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes the head's tensors."""
        self.dense.load(tensors, "dense", device)
        self.out.load(tensors, "out", device)

    def forward(self, hidden: Tensor, ids: Tensor, spans: Spans) -> Tensor:
        """f32[B, C] of token vectors [T, H]."""
        # As transformers' classifiers of decoders: the last token that is not padding, by its id.
        real = None if self.pad_id is None else ids != self.pad_id
        at = spans.first() if self.takes_first else spans.last(real)
        rows = hidden[at].float()
        return self.out(rows if self.dense.weight is None else self.act(self.dense(rows)))


def make_top(facts: Facts) -> Rows | Logits:
    """The top of a model."""
    classifier = facts.spec.classifier
    return Rows(facts.spec) if classifier is None else Logits(facts.spec, classifier)
