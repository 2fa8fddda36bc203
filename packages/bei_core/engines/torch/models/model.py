"""`Model`, a transformer with its head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bei_core.engines.batch import Batch
from bei_core.engines.torch.folder import HEAD_PREFIX, Facts
from bei_core.engines.torch.kernels.torch import Attention, Kernels
from bei_core.engines.torch.kernels.varlen import is_flash
from bei_core.engines.torch.models.heads import F32Layers, Head
from bei_core.engines.torch.models.sequences import Sequences, upload
from bei_core.engines.torch.models.transformer import Transformer
from bei_core.engines.torch.models.weights import Weights


class Model(nn.Module):
    """`transformer(sequences)` returns token vectors [T, H]; `head.rows` and `head.tokens` make the outputs of them."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        self.family = facts.of_family
        self.transformer = Transformer(facts, kernels)
        self.head = Head(facts.spec)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.transformer.parameters()).device

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads model.safetensors. Raises CheckpointError for a tensor that is missing or of another shape."""
        self.transformer.load(Weights(tensors, anchor=self.family.anchor, prefixes=self.family.prefixes))
        heads = {name.removeprefix(HEAD_PREFIX): tensors[name] for name in tensors if name.startswith(HEAD_PREFIX)}
        self.head.layers = F32Layers(heads, self.device)

    def is_graphable(self) -> bool:
        """Whether a CUDA graph can contain it: no layer loops over sequences on the host."""
        layers = (each for each in self.modules() if isinstance(each, Attention))
        return all(is_flash(self.device, each.kernels.dtype, each.sizes, each.score_bias) for each in layers)

    def rows(self, sequences: Sequences) -> Tensor | None:
        """f32[B, D]; None for a model that has token vectors only."""
        return self.head.rows(self.transformer(sequences), sequences)

    @torch.inference_mode()
    def compute(self, batch: Batch, with_tokens: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """Returns (rows f32[B, D], token vectors f32[T, E]), which a GPU may not have computed yet.

        Each is None if the model has no such output; token vectors also without `with_tokens`.
        """
        flat = upload(batch, self.device)
        sequences = Sequences.of(flat, batch.num_tokens, batch.lengths.tolist(), batch.max_len)
        hidden = self.transformer(sequences)
        tokens = self.head.tokens(hidden, sequences) if with_tokens else None
        return self.head.rows(hidden, sequences), tokens
