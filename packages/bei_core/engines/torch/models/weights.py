"""The tensors of a checkpoint, grouped by layer, and how they become the parameters of modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.errors import CheckpointError
from bei_core.models.heads import first_of

# Names of LayerNorm's tensors in checkpoints converted from TensorFlow.
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


class Layer(dict[str, Tensor]):
    """The tensors of one layer of a checkpoint, by the last part of their names, such as "weight" or "weight_scale"."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.name = name  # the whole name in the checkpoint

    def __missing__(self, part: str) -> Tensor:
        raise CheckpointError(f"the checkpoint has no tensor {self.name}.{part}")

    def f32_weight(self) -> Tensor:
        """Returns the weight in f32. For a quantised layer it is multiplied by its scale."""
        weight = self["weight"].float()
        return weight * self["weight_scale"].float() if "weight_scale" in self else weight

    def parameter(self, part: str, shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
        """Returns a tensor of the layer as a parameter.

        Raises CheckpointError if it is missing or has another shape.
        """
        if part not in self or self[part].shape != shape:
            found = tuple(self[part].shape) if part in self else "missing"
            raise CheckpointError(f"tensor {self.name}.{part} is {found}; config.json implies {tuple(shape)}")
        return nn.Parameter(self[part].to(dtype), requires_grad=False)

    def split(self, count: int) -> list[Layer]:
        """Returns the `count` layers that are joined in this one; each has the same number of rows of the weight."""
        chunks = {part: x.chunk(count) if x.ndim else [x] * count for part, x in self.items()}  # a scale is for all
        return [Layer(self.name, {part: chunks[part][number] for part in chunks}) for number in range(count)]


class Weights:
    """A checkpoint's tensors under one prefix, grouped by layer."""

    def __init__(self, tensors: Mapping[str, Tensor], *, anchor: str, prefixes: Sequence[str]) -> None:
        """Uses the first of `prefixes` under which the tensor `anchor` exists; raises CheckpointError if none fits."""
        prefix = first_of(tensors, [prefix + anchor for prefix in prefixes]).removesuffix(anchor)
        self.whole, self._prefix = tensors, prefix  # by their whole names, with the prefix
        self._layers: dict[str, dict[str, str]] = {}
        for name in tensors:
            if name.startswith(prefix):
                layer, _, part = name.removeprefix(prefix).rpartition(".")
                self._layers.setdefault(layer, {})[_OLD_NAMES.get(part, part)] = name

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name, such as "layers.0.mlp.down_proj.weight"."""
        layer, _, part = str(name).rpartition(".")
        return part in self._layers.get(layer, ())

    def layer(self, name: str) -> Layer:
        """Reads the tensors of a layer. Raises CheckpointError if there are none."""
        if name not in self._layers:
            raise CheckpointError(f"the checkpoint has no tensors of {name}")
        # TensorRT-LLM may give slices of a file, which [...] reads.
        return Layer(self._prefix + name, {part: self.whole[known][...] for part, known in self._layers[name].items()})

    def layers(self, names: Sequence[str], count: int) -> list[Layer]:
        """Returns the layers `names`; a single name is a layer in which `count` layers are joined, and is split."""
        found = [self.layer(name) for name in names]
        return found[0].split(count) if len(found) == 1 else found

    def load(self, module: nn.Module, name: str) -> None:
        """Copies the layer `name` into the module's own parameters; nothing is read for a module without any.

        Raises CheckpointError for a tensor that is missing or has the wrong shape.
        """
        parameters = dict(module.named_parameters(recurse=False))
        if parameters:
            layer = self.layer(name)
            for part, parameter in parameters.items():
                fill(parameter, layer, part)


def empty(*shape: int, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """Returns a parameter with undefined values, which `fill` overwrites."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


def fill(parameter: Any, layer: Layer, part: str) -> None:
    """Copies a tensor of a layer into a parameter. Raises CheckpointError if it is missing or has another shape."""
    parameter.requires_grad_(False).copy_(layer.parameter(part, parameter.shape, parameter.dtype))
