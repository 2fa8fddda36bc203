"""Linear layers and attention in plain torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.torch.kernels import varlen
from bei_core.engines.torch.kernels.base import AttentionSizes, Rank, fits_fp8
from bei_core.engines.torch.kernels.varlen import ScoreBias
from bei_core.engines.torch.models.sequences import Sequences, handle_of
from bei_core.engines.torch.models.weights import Layer, Weights, empty
from bei_core.errors import UnsupportedModelError
from bei_core.models.tensor_names import TensorNames

log = logging.getLogger(__name__)


class Kernels:
    """Makes the layers that take most of the time, for which optimised kernels exist: linear layers and attention.

    Those of this class are in plain torch, and can divide a model among GPUs. A subclass has other kernels.
    """

    def __init__(self, dtype: torch.dtype, rank: Rank | None = None, *, may_compile: bool = True) -> None:
        """`dtype` is that of the parameters and of token vectors between layers; FlexAttention needs `may_compile`.

        cuDNN's attention is disabled in this process: it makes a plan for each new shape of a batch, and torch prefers
        it to FlashAttention on Hopper and Blackwell.
        """
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.dtype, self.rank = dtype, rank or Rank()
        self.uses_flex = may_compile  # until FlexAttention has failed in a layer of the model

    def linear(
        self, size_in: int, size_out: int, part: str, *, bias: bool, fused: str | None = None, split: str | None = None
    ) -> Any:
        """Returns a module that maps [T, size_in] to [T, size_out] and has a method `load_weights(layers)`.

        `part` names the part of the transformer ("attention", "mlp", "embeddings"), which decides whether the layer is
        quantised. `fused` ("qkv", "gate_up") is set if several layers of the checkpoint are joined in the module. If a
        model is divided among GPUs, each GPU has a share of the weight's rows (`split` "out"), of its columns ("in"),
        or the whole weight (None).
        """
        return Linear(size_in, size_out, part, self, bias=bias, split=split)

    def attention(
        self, sizes: AttentionSizes, rope: nn.Module | None, layer: int, score_bias: ScoreBias | None = None
    ) -> Any:
        """Returns a module with `load(weights, prefix, names)` and `forward(x, sequences)`, from [T, H] to [T, H].

        `rope` is a `Rope` or None. `score_bias` returns numbers that are added to the attention scores.
        """
        if self.rank.size > 1 and score_bias is not None:
            raise UnsupportedModelError("attention with relative positions cannot be divided among GPUs")
        return Attention(sizes, rope, self, score_bias)


class Linear(nn.Module):
    """A linear layer, x Wᵀ + b. If the checkpoint has scales for it, it computes in e4m3 with one scale per tensor.

    If the checkpoint has a bias, it is used even with `bias=False`.
    """

    def __init__(
        self, size_in: int, size_out: int, part: str, kernels: Kernels, *, bias: bool, split: str | None = None
    ) -> None:
        super().__init__()
        self.split, self.rank = split, kernels.rank
        self.part, _, in_bf16 = part.partition(" ")  # see `AttentionSizes.part`
        self.fits_fp8 = not in_bf16 and fits_fp8(size_in, size_out)
        size_out = self.rank.share(size_out, "rows of a linear layer") if split == "out" else size_out
        size_in = self.rank.share(size_in, "columns of a linear layer") if split == "in" else size_in
        self.dtype = kernels.dtype  # of weight and bias, unless the weight is quantised
        # Without memory until the checkpoint says whether the weight is quantised.
        self.weight = empty(size_out, size_in, dtype=self.dtype, device=torch.device("meta"))
        self.bias = empty(size_out, dtype=self.dtype, device=torch.device("meta")) if bias else None
        self.layers: tuple[str, ...] = ()  # their names in the checkpoint
        self.weight_scale: Tensor | None = None  # f32[]; None: the weight is not quantised
        self.input_scale: Tensor | None = None

    def load_weights(self, layers: Sequence[Layer]) -> None:
        """Loads one layer of a checkpoint, or several layers, whose rows are concatenated.

        Raises CheckpointError for a tensor that is missing or has the wrong shape, and UnsupportedModelError for a
        share in fp8 whose sizes fp8 does not support.
        """
        self.layers = tuple(dict.fromkeys(layer.name for layer in layers))
        dtype = self.dtype
        if "weight_scale" in layers[0]:
            if self.rank.size > 1 and not fits_fp8(*self.weight.shape):
                raise UnsupportedModelError(
                    f"{self.layers[0]} in fp8 cannot be divided among {self.rank.size} GPUs: fp8 needs sizes that are "
                    f"multiples of 16, and a share is {list(self.weight.shape)}; use fewer GPUs, or an engine in bf16"
                )
            self.weight_scale = torch.stack([layer["weight_scale"].float() for layer in layers]).amax()
            self.input_scale = torch.stack([layer["input_scale"].float() for layer in layers]).amax()
            dtype = torch.float8_e4m3fn
        weights = [self._share(self._rescaled(layer), self.split) for layer in layers if "weight" in layer]
        joined = Layer(self.layers[0], {"weight": torch.cat(weights)} if weights else {})
        if "bias" in layers[0]:
            rows = self.split if self.split == "out" else None
            joined["bias"] = torch.cat([self._share(layer["bias"], rows) for layer in layers])
        self.weight = joined.parameter("weight", self.weight.shape, dtype)
        if self.bias is not None or "bias" in joined:
            self.bias = joined.parameter("bias", self.weight.shape[:1], self.dtype)

    def _share(self, tensor: Tensor, split: str | None) -> Tensor:
        return tensor if split is None else tensor.chunk(self.rank.size, int(split == "in"))[self.rank.number]

    def _rescaled(self, layer: Layer) -> Tensor:
        """Returns the weight of a layer, in e4m3 for the scale that all joined layers share if it is quantised."""
        if self.weight_scale is None or layer["weight_scale"] == self.weight_scale:
            return layer["weight"]
        return to_fp8(layer.f32_weight(), self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [T, size_out] for x [T, size_in]. If the columns are divided among GPUs, adds up their results."""
        is_sum = self.split == "in" and self.rank.size > 1
        bias = None if is_sum else self.bias
        if self.weight_scale is None:
            y = F.linear(x, self.weight, bias)
        else:
            scales = {"scale_a": self.input_scale, "scale_b": self.weight_scale}
            rounded = to_fp8(x, self.input_scale)
            y = torch._scaled_mm(rounded, self.weight.t(), bias=bias, out_dtype=x.dtype, **scales)
        if is_sum:
            torch.distributed.all_reduce(y)
            y = y if self.bias is None else y + self.bias
        return y


def to_fp8(x: Tensor, scale: Tensor | None) -> Tensor:
    """Returns x / scale, rounded to e4m3; values beyond its range become its largest or smallest value."""
    limit = torch.finfo(torch.float8_e4m3fn).max
    return (x.float() / scale).clamp(-limit, limit).to(torch.float8_e4m3fn)


class NormAndRope(nn.Module):
    """Norms and rotary embedding of queries and keys, which torch.compile can make one kernel."""

    def __init__(self, sizes: AttentionSizes, rope: nn.Module | None, rank: Rank) -> None:
        super().__init__()
        self.rope, self.eps, self.offset = rope, sizes.eps, sizes.offset
        self.num_heads = [rank.share(number, "attention heads") for number in (sizes.num_heads, sizes.num_kv_heads)]
        rows = 0 if sizes.eps is None else sum(self.num_heads)
        self.weight = empty(rows, sizes.head_size, dtype=torch.float32)  # of the norms, a row for each head

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing, as in BERT."""
        return self.rope is None and self.eps is None

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads the norms, which only decoders have."""
        if self.eps is None:
            return
        for name, heads in zip(names.qk_norms, self.weight.split(self.num_heads), strict=True):
            heads.copy_(weights.layer(prefix + name).parameter("weight", heads.shape[1:], heads.dtype))
        self.weight += self.offset

    def forward(self, query_key: Tensor, position_ids: Tensor) -> Tensor:
        """Returns queries and keys [T, N + K, S] after norms and rotary embedding, which are computed in f32."""
        x = query_key.float()
        if self.eps is not None:
            x = F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight
        return (x if self.rope is None else self.rope(x, position_ids)).to(query_key.dtype)


def load_attention(attention: Any, weights: Weights, prefix: str, names: TensorNames) -> None:
    """Loads `qkv_proj`, `o_proj` and `norm_and_rope` of an attention; its tensors have a prefix before the names."""
    attention.qkv_proj.load_weights(weights.layers([prefix + name for name in names.qkv], 3))
    attention.o_proj.load_weights([weights.layer(prefix + names.out)])
    attention.norm_and_rope.load(weights, prefix, names)


class Attention(nn.Module):
    """Attention within each sequence of a packed batch, in torch. Its linear layers come from any set of kernels."""

    def __init__(
        self, sizes: AttentionSizes, rope: nn.Module | None, kernels: Kernels, score_bias: ScoreBias | None
    ) -> None:
        super().__init__()
        self.sizes, self.score_bias, self.kernels = sizes, score_bias, kernels
        self.norm_and_rope: Any = NormAndRope(sizes, rope, kernels.rank)  # first: its error names the number of heads
        self.num_heads, self.num_kv_heads = self.norm_and_rope.num_heads
        width = sizes.num_heads * sizes.head_size
        size_qkv = width + 2 * sizes.num_kv_heads * sizes.head_size
        self.qkv_proj = kernels.linear(sizes.hidden, size_qkv, sizes.part, bias=sizes.bias, fused="qkv", split="out")
        self.o_proj = kernels.linear(width, sizes.hidden, sizes.part, bias=sizes.out_bias, split="in")
        self.handle = handle_of(self)

    load = load_attention

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, H] for x [T, H]."""
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.sizes.head_size))
        query_key, value = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], 1)
        if not self.norm_and_rope.is_identity:
            query_key = self.norm_and_rope(query_key, sequences.position_ids)
        if torch.compiler.is_compiling():
            mixed = varlen.attention(query_key, value, self.handle, sequences.handle)
        else:  # the operator costs time of the host, and imports the compiler at its first call
            mixed = self.mix(query_key, value, sequences)
        return self.o_proj(mixed)

    def mix(self, query_key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, N * S], contiguous, for queries and keys [T, N + K, S], values [T, K, S]."""
        query, key = query_key.split([self.num_heads, self.num_kv_heads], 1)
        return self.attend(query, key, value, sequences).flatten(1).contiguous()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, N, S] for queries [T, N, S], keys and values [T, K, S].

        Rows of tokens that belong to no sequence are undefined.
        """
        inputs, bias = (query, key, value, sequences, self.sizes), self.score_bias
        if varlen.is_flash(query.device, query.dtype, self.sizes, bias):
            return varlen.flash(*inputs)
        if self.kernels.uses_flex and varlen.is_flex(query, self.sizes, bias):
            try:
                return varlen.flex(*inputs, bias)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of many types: there is no compiler, or torch cannot make the kernel
                self.kernels.uses_flex = False
                log.warning("FlexAttention is not used and attention is slower, because torch cannot run it: %s", error)
        return varlen.by_sequence(*inputs, bias)
