from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class PredefinedAttentionMask(str, Enum):
    CAUSAL = "causal"
    FULL = "full"


@dataclass
class AttentionMetadata:
    """Lengths of a batch's sequences, on the host and on the device."""

    seq_lens: Tensor  # i32[B]

    @property
    def seq_lens_cuda(self) -> Tensor:
        return self.seq_lens

    @property
    def num_contexts(self) -> int:
        return len(self.seq_lens)

    @property
    def num_tokens(self) -> int:
        return int(torch.sum(self.seq_lens))
