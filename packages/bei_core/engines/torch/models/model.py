"""A transformer with its head, made of a set of kernels. The page of a family has its layers: a class `Transformer`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import chain

from torch import Tensor, nn

from bei_core.engines.torch.folder import HEAD_PREFIX, Facts
from bei_core.engines.torch.kernels.base import Kernels
from bei_core.engines.torch.models.heads import make_head
from bei_core.engines.torch.models.layers import Weights


class Model(nn.Module):
    """`transformer(sequences)` gives token vectors [T, H]; `head.rows` and `head.tokens` what a caller gets of them."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        self.family = facts.of_family
        page = import_module(f"{__package__}.{self.family.page}")
        self.transformer = page.Transformer(facts, kernels)
        self.head = make_head(facts.spec)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads model.safetensors. Raises CheckpointError for a tensor that is missing or of another shape."""
        self.transformer.load(Weights(tensors, anchor=self.family.anchor, prefixes=self.family.prefixes))
        placed: Iterable[Tensor] = chain(self.transformer.parameters(), self.transformer.buffers())
        heads = {name.removeprefix(HEAD_PREFIX): tensors[name] for name in tensors if name.startswith(HEAD_PREFIX)}
        self.head.load(heads, next(iter(placed)).device)
