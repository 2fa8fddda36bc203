from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensorrt_llm.calls import record

_E4M3_MAX = 448.0


class WeightMode(str, enum.Enum):
    VANILLA = "vanilla"
    FUSED_QKV_LINEAR = "fused_qkv_linear"
    FUSED_GATE_UP_LINEAR = "fused_gate_up_linear"


@dataclass(kw_only=True)
class WeightsLoadingConfig:
    weight_mode: WeightMode = WeightMode.VANILLA
    ignore_tensor_parallel: bool = False


class Linear(nn.Module):
    """A linear layer in `dtype`, or in e4m3 with one scale per tensor, as FP8QDQLinearMethod computes it."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: Any = None, **kwargs: Any
    ) -> None:
        record("Linear", (in_features, out_features), {"bias": bias, "dtype": dtype, **kwargs})
        super().__init__()
        self.dtype = dtype
        quant_config = kwargs.get("quant_config")
        self.algorithm = None if quant_config is None else quant_config.quant_algo
        self.mode = (kwargs.get("weights_loading_config") or WeightsLoadingConfig()).weight_mode
        if self.algorithm not in (None, "FP8"):
            raise NotImplementedError(f"the stand-in has no {self.algorithm}")
        kind = dtype if self.algorithm is None else torch.float8_e4m3fn
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=kind), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None
        for name in ("weight_scale", "input_scale"):
            self.register_buffer(name, torch.ones(()))

    def load_weights(self, weights: Sequence[Mapping[str, Tensor]]) -> None:
        record("Linear.load_weights", (weights,), {})
        if len(weights) != {"vanilla": 1, "fused_qkv_linear": 3, "fused_gate_up_linear": 2}[self.mode.value]:
            raise ValueError(f"{self.mode} of {len(weights)} layers")
        if self.bias is not None:
            self.bias.copy_(torch.cat([each["bias"] for each in weights]))
        if self.algorithm is None:
            self.weight.copy_(torch.cat([each["weight"] for each in weights]))
            return
        self.weight_scale = max(each["weight_scale"] for each in weights)
        self.input_scale = max(each["input_scale"] for each in weights)
        wide = torch.cat([each["weight"].to(self.dtype) * each["weight_scale"].to(self.dtype) for each in weights])
        self.weight.copy_((wide / self.weight_scale).to(torch.float8_e4m3fn))

    def forward(self, x: Tensor) -> Tensor:
        if self.algorithm is None:  # accumulated in f32, as a tensor core does; a CPU is slow in bf16, too
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias).to(x.dtype)
        rounded = (x.float() / self.input_scale).clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)
        y = F.linear(rounded.float(), self.weight.float()) * (self.input_scale * self.weight_scale)
        return y.to(self.dtype) if self.bias is None else y.to(self.dtype) + self.bias
