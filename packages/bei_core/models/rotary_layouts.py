"""The layouts of encoders with rotary positions, by the names of the published checkpoints and of transformers.

ModernBERT (Warner et al. 2024) is pre-norm, and two thirds of its layers have a sliding window; Nomic Embed (Nussbaum
et al. 2024) and mGTE (Zhang et al. 2024) are post-norm. Nomic Embed v2 (Nussbaum and Duderstadt 2025) has plain MLPs,
and experts in every second layer.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import ClassVar

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config, read_number, read_size, read_whole
from bei_core.models.layouts import Layout, by_layer_types, check_rope, read_num_layers, read_window
from bei_core.models.sizes import FULL, SLIDING, ExpertSizes, Heads, Sizes
from bei_core.models.tensor_names import FLASH_NAMES, TensorNames

_EPS = ("norm_eps", "layer_norm_epsilon", "layer_norm_eps")


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryLayout(Layout):
    """Encoders with rotary positions.

    A bias exists always (True), never (False), or if config.json has a true value under this key (a string).
    """

    name: ClassVar[str] = "rotary"
    has_rope: ClassVar[bool] = True
    has_windows: bool = False  # layers with a sliding window, as in ModernBERT
    activation: tuple[str, str] = ("hidden_act", "gelu")  # the key in config.json that names it, and the default
    default_eps: float = 1e-12
    attention_bias: bool | str = False
    mlp_bias: bool | str = False
    out_bias: bool | str = False  # of the MLP's last layer
    norm_bias: bool | str = True
    supported: Config = field(default_factory=dict)  # keys of config.json with the only value that the engines compute

    def sizes(self, config: Config) -> Sizes:
        """See `Layout.sizes`."""
        for name, value in self.supported.items():
            if config.get(name, value) not in (value, None):
                raise UnsupportedModelError(f"config.json: {name} {config[name]!r} is not supported, only {value!r}")

        def is_set(bias: bool | str) -> bool:
            return bool(config.get(bias)) if isinstance(bias, str) else bias

        num_layers = read_num_layers(config, "n_layer", "num_hidden_layers")
        layer_types = tuple(self._layer_type(config, layer) for layer in range(num_layers))
        check_rope(config, layer_types)
        both_sides = read_window(config, "local_attention") if SLIDING in layer_types else 0
        hidden, bias = read_size(config, "n_embd", "hidden_size"), is_set(self.attention_bias)
        return Sizes(
            config=config,
            hidden=hidden,
            heads=Heads.even(hidden, read_size(config, "n_head", "num_attention_heads")),
            intermediate_size=read_size(config, "n_inner", "intermediate_size"),
            activation=self._activation(config),
            eps=next((read_number(config, name, 0) for name in _EPS if config.get(name)), self.default_eps),
            layer_types=layer_types,
            num_types=None,
            window=(both_sides or 128) // 2 + 1,
            has_rope=True,
            norm_bias=is_set(self.norm_bias),
            qkv_bias=bias,
            out_bias=bias,
            is_gated=self._is_gated(config),
            mlp_bias=is_set(self.mlp_bias),
            mlp_out_bias=is_set(self.out_bias),
            experts=ExpertSizes.of(config),
        )

    def fit(self, sizes: Sizes, names: TensorNames, tensors: Container[str]) -> Sizes:
        """See `Layout.fit`: the layers say whether NomicBERT's MLPs have gates; experts have to be in config.json."""
        first, second = names.layer.format(0), names.layer.format(1)  # the second one is the first with experts
        if sizes.experts is None and f"{second}{names.router}.weight" in tensors:
            raise UnsupportedModelError("config.json has no `num_experts`, but the checkpoint has a router of experts")
        has_gates = bool(names.gated) and (not names.up or f"{first}{names.gated[0]}.weight" in tensors)
        return Layout.fit(self, replace(sizes, is_gated=has_gates), names, tensors)

    def _activation(self, config: Config) -> str:
        setting, default = self.activation
        activation = str(config.get(setting) or config.get("hidden_act") or default)
        return "silu" if activation == "swiglu" else activation

    def _is_gated(self, config: Config) -> bool:
        """Whether MLPs have gates: always or never, but in NomicBERT by its activation."""
        has_gates = config.get("activation_function") in (None, "swiglu") and not config.get("num_experts")
        return bool(self.names[0].gated) and has_gates

    def _layer_type(self, config: Config, layer: int) -> str:
        if not self.has_windows:
            return FULL
        every = read_whole(config, "global_attn_every_n_layers") or 3
        return SLIDING if by_layer_types(config, layer, layer % every != 0) else FULL


def _with_native(names: TensorNames) -> tuple[TensorNames, TensorNames]:
    """Returns the names, and those of transformers' own class, as `save_original_format=False` writes them.

    transformers also keeps the latter when it saves a model that it read from such a file.
    """
    native = replace(
        names,
        embedding_norm="embeddings.LayerNorm",
        layer="layers.{}.",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.o_proj",
        attention_norm="post_attention_layernorm",
        gated=("mlp.up_proj", "mlp.gate_proj") if names.gated else (),
        down="mlp.down_proj" if names.gated else names.down,
        mlp_norm="post_mlp_layernorm",
    )
    return names, native


MODERNBERT = RotaryLayout(
    names=(
        TensorNames(
            words="embeddings.tok_embeddings",
            embedding_norm="embeddings.norm",
            layer="layers.{}.",
            qkv=("attn.Wqkv",),
            out="attn.Wo",
            attention_norm="attn_norm",
            gated=("mlp.Wi",),
            down="mlp.Wo",
            mlp_norm="mlp_norm",
            final_norm="final_norm",
        ),
    ),
    has_windows=True,
    activation=("hidden_activation", "gelu"),
    default_eps=1e-5,
    attention_bias="attention_bias",
    mlp_bias="mlp_bias",
    out_bias="mlp_bias",
    norm_bias="norm_bias",
    reads_biases=True,
)
NOMIC = RotaryLayout(
    names=_with_native(
        replace(
            FLASH_NAMES,
            qkv=("attn.Wqkv",),
            out="attn.out_proj",
            gated=("mlp.fc11", "mlp.fc12"),
            up_first=True,
        )
    ),
    activation=("activation_function", "swiglu"),
    supported={
        "prenorm": False,
        "parallel_block": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_scaling_factor": None,
        "rotary_emb_scale_base": None,
        "causal": False,
        "use_rms_norm": False,
        "num_shared_experts": 0,
        "moe_normalize_expert_weights": False,
        "expert_choice_router": False,
    },
)
GTE = RotaryLayout(
    names=_with_native(
        TensorNames(
            embedding_norm="embeddings.LayerNorm",
            layer="encoder.layer.{}.",
            qkv=("attention.qkv_proj",),
            out="attention.o_proj",
            attention_norm="attn_ln",
            gated=("mlp.up_gate_proj",),
            up_first=True,
            down="mlp.down_proj",
            mlp_norm="mlp_ln",
        )
    ),
    attention_bias=True,
    out_bias=True,
    supported={"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False},
)
JINA_V3 = RotaryLayout(
    names=_with_native(FLASH_NAMES),
    default_eps=1e-5,
    attention_bias=True,
    mlp_bias=True,
    out_bias=True,
)
