"""A transformer with its head, made of a set of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

from bei_core.engines.torch.artifact import HEAD_PREFIX, Facts
from bei_core.engines.torch.kernels.base import Kernels
from bei_core.engines.torch.models.bert import BertTransformer
from bei_core.engines.torch.models.deberta import DebertaTransformer
from bei_core.engines.torch.models.decoder import DecoderTransformer
from bei_core.engines.torch.models.heads import make_head
from bei_core.engines.torch.models.layers import Weights
from bei_core.engines.torch.models.rotary import RotaryTransformer
from bei_core.models.families import BERTS, DECODERS

_TRANSFORMERS: Mapping[str, Callable[[Facts, Kernels], Any]] = {
    **dict.fromkeys(BERTS, BertTransformer),
    **dict.fromkeys(DECODERS, DecoderTransformer),
    **dict.fromkeys(("modernbert", "nomic", "gte"), RotaryTransformer),
    "deberta": DebertaTransformer,
}


class Model(nn.Module):
    """`transformer(sequences)` gives token vectors [T, H]; `head.rows` and `head.tokens` what a caller gets of them."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        self.facts = facts
        self.transformer = _TRANSFORMERS[facts.family](facts, kernels)
        self.head = make_head(facts.spec)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads model.safetensors. Raises CheckpointError for a tensor that is missing or of another shape."""
        self.transformer.load(Weights(tensors, anchor=self.facts.anchor, prefixes=self.facts.prefixes))
        placed: Iterable[Tensor] = chain(self.transformer.parameters(), self.transformer.buffers())
        heads = {name.removeprefix(HEAD_PREFIX): tensors[name] for name in tensors if name.startswith(HEAD_PREFIX)}
        self.head.load(heads, next(iter(placed)).device)
