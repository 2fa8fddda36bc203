from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from tensorrt_llm.calls import record
from tensorrt_llm.functional import RotaryScalingType


class PredefinedAttentionMask(str, Enum):
    CAUSAL = "causal"
    FULL = "full"


class PositionEmbeddingType(Enum):
    learned_absolute = 0
    rope_gpt_neox = 2


@dataclass(kw_only=True, unsafe_hash=True)
class RopeParams:
    dim: int = 0
    theta: float = 10000.0
    scale_type: RotaryScalingType = RotaryScalingType.none
    scale: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    max_positions: int = 1024
    original_max_positions: int = 1024

    def __post_init__(self) -> None:
        record("RopeParams", (), vars(self))

    def tables(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines, f32[max_positions, dim / 2]."""
        frequencies = self.theta ** -(torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        if self.scale_type == RotaryScalingType.llama3:
            frequencies = torch.tensor([self._scaled(each) for each in frequencies.tolist()], dtype=torch.float64)
        angles = torch.arange(self.max_positions)[:, None] * frequencies
        return angles.cos().float(), angles.sin().float()

    def _scaled(self, frequency: float) -> float:
        """Llama 3's scaling: short waves stay, long ones become longer by `scale`, and those between are a mixture."""
        waves = self.original_max_positions * frequency / (2 * math.pi)
        if waves > self.high_freq_factor:
            return frequency
        if waves < self.low_freq_factor:
            return frequency / self.scale
        smooth = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return (1 - smooth) * frequency / self.scale + smooth * frequency


@dataclass(kw_only=True, frozen=True)
class PositionalEmbeddingParams:
    type: PositionEmbeddingType
    rope: RopeParams | None = None

    def __post_init__(self) -> None:
        record("PositionalEmbeddingParams", (), vars(self))


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
