"""Layouts: how families differ whose layers are computed by the same page (module) of an engine.

There is one type of layout for BERT-like encoders, one for encoders with rotary positions and one for decoders. It has
the names of tensors and of settings in config.json. `BertSizes.of(layout, config)` and its like read and check the
sizes. `models/families.py` has the table of families. Source: transformers 5.23, `models/*/modeling_*.py` and
`configuration_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import MAX_LAYERS, MAX_SIZE, Config, read_number, read_size, read_whole
from bei_core.models.rope import rope_settings
from bei_core.models.tensor_names import GEMMA, LLAMA, TensorNames

FULL, SLIDING = "full_attention", "sliding_attention"  # types of attention layers, as transformers names them
TASK_TYPES = "embeddings.task_type_embeddings.weight"  # of ERNIE


@dataclass(frozen=True, slots=True, kw_only=True)
class BertNames(TensorNames):
    """The layout of BERT-like encoders: the names of a family's tensors and settings."""

    embedding_norm: str = "embeddings.LayerNorm"
    layer: str = "encoder.layer.{}."
    qkv: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: tuple[str, ...] = ("intermediate.dense",)
    down: str = "output.dense"
    mlp_norm: str = "output.LayerNorm"
    # The id of the tokens that have no position, also inside a text: they have its row of the position table, and the
    # positions of other tokens begin after this row. A string is the key in config.json; None: every token has one.
    padding_id: int | str | None = None
    has_types: bool = True
    has_task_types: bool = False  # see `BertSizes.has_task_type`
    relative_attention: str | None = None  # tensor of bucketed relative position biases
    # JinaBERT: attention has ALiBi, so there is no position table, and MLPs have gates.
    has_alibi: bool = False
    config_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def telling_layer(self) -> str:
        """The first layer of the first MLP; see `find_layout`."""
        return self.layer.format(0) + self.up[0]

    def padding_id_of(self, config: Config) -> int | None:
        """Returns the id of the tokens without a position, which is 1 if config.json has none; None: all have one."""
        if not isinstance(self.padding_id, str):
            return self.padding_id
        value = config.get(self.padding_id)
        return 1 if value is None else read_size(config, self.padding_id, least=0)

    def read_setting(self, config: Config, name: str, default: object = None) -> Any:  # noqa: ANN401
        """Returns a value of config.json, by BERT's name of the key. Raises UnsupportedModelError if it is missing."""
        known = self.config_names.get(name, name)
        value = config.get(known, default)
        if value is None:
            raise UnsupportedModelError(f"config.json has no `{known}`")
        return value


@dataclass(frozen=True, slots=True)
class BertSizes:
    """Sizes of a BERT-like encoder, from config.json."""

    hidden: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    eps: float
    activation: str
    vocab_size: int
    num_types: int  # 0 for a family without token types
    has_task_type: bool  # whether each token also has the embedding of the first task type (ERNIE)
    num_positions: int  # rows of the position table; 0 for a family without it
    padding_id: int | None  # see `BertNames.padding_id`

    @classmethod
    def of(cls, names: BertNames, config: Config) -> BertSizes:
        """Reads config.json.

        Raises UnsupportedModelError for a missing size, another position embedding, or causal attention.
        """
        if config.get("is_decoder"):
            raise UnsupportedModelError("config.json: is_decoder true (attention to earlier tokens) is not supported")
        found, known = config.get("position_embedding_type") or "absolute", "alibi" if names.has_alibi else "absolute"
        if found != known:
            raise UnsupportedModelError(
                f"config.json: position_embedding_type {found!r} is not supported, only {known!r}"
            )

        def number(name: str, default: int | None = None) -> int:
            return read_size(config, names.config_names.get(name, name), default=default)

        return cls(
            hidden=number("hidden_size"),
            num_layers=number("num_hidden_layers"),
            num_heads=number("num_attention_heads"),
            intermediate_size=number("intermediate_size"),
            eps=read_number(config, "layer_norm_eps", 1e-12),
            activation=_jina_gate(config) if names.has_alibi else str(names.read_setting(config, "hidden_act")),
            vocab_size=number("vocab_size"),
            num_types=number("type_vocab_size", 2) if names.has_types and config.get("type_vocab_size") != 0 else 0,
            has_task_type=names.has_task_types and bool(config.get("use_task_id")),
            num_positions=0 if names.has_alibi else number("max_position_embeddings"),
            padding_id=names.padding_id_of(config),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryNames(TensorNames):
    """The layout of encoders with rotary positions and gated MLPs: names of tensors, and differences between families.

    A bias exists always (True), never (False), or if config.json has a true value under this key (a string). `up` is
    empty if MLPs are always plain.
    """

    up_first: bool = True
    has_windows: bool = False  # layers with a sliding window, as in ModernBERT
    only_first_type: bool = False  # see `has_one_type`
    activation: tuple[str, str] = ("hidden_act", "gelu")  # the key in config.json that names it, and the default
    default_eps: float = 1e-12
    attention_bias: bool | str = False
    mlp_bias: bool | str = False
    out_bias: bool | str = False  # of the MLP's last layer
    norm_bias: bool | str = True
    supported: Config = field(default_factory=dict)  # keys of config.json with the only value that the engines compute

    @property
    def telling_layer(self) -> str:
        """The last layer of the first attention; see `find_layout`."""
        return self.layer.format(0) + self.out

    def has_one_type(self, num_types: int) -> bool:
        """Whether every token has the only type embedding, of whatever type the token is (GTE's class)."""
        return self.only_first_type and num_types == 1


_EPS = ("norm_eps", "layer_norm_epsilon", "layer_norm_eps")


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """Sizes of mixtures of experts (Nomic Embed v2)."""

    count: int
    top_k: int  # the number of experts that compute a token
    every: int  # a layer has experts if its number modulo `every` is 1

    @classmethod
    def of(cls, config: Config) -> ExpertSizes | None:
        """Reads config.json; None for a model without experts. Raises UnsupportedModelError for impossible sizes."""
        if not config.get("num_experts"):
            return None
        count, top_k = read_size(config, "num_experts"), read_size(config, "moe_top_k", default=2)
        if top_k > count:
            raise UnsupportedModelError(f"config.json: moe_top_k is {top_k}, but there are only {count} experts")
        return cls(count, top_k, read_size(config, "moe_every_n_layers", default=2))


@dataclass(frozen=True, slots=True)
class RotarySizes:
    """Sizes of an encoder with rotary positions, from config.json."""

    hidden: int
    num_heads: int
    intermediate_size: int
    eps: float
    activation: str
    is_gated: bool  # False: MLPs are plain
    experts: ExpertSizes | None  # of the layers with mixtures of experts
    layer_types: tuple[str, ...]  # FULL or SLIDING for each layer
    window: int  # in sliding layers, a token attends to tokens less than this many positions away
    attention_bias: bool
    mlp_bias: bool
    out_bias: bool
    norm_bias: bool

    @classmethod
    def of(cls, names: RotaryNames, config: Config) -> RotarySizes:
        """Reads config.json. Raises UnsupportedModelError for a missing size or a value that is not supported."""
        for name, value in names.supported.items():
            if config.get(name, value) not in (value, None):
                raise UnsupportedModelError(f"config.json: {name} {config[name]!r} is not supported, only {value!r}")

        def is_set(bias: bool | str) -> bool:
            return bool(config.get(bias)) if isinstance(bias, str) else bias

        setting, default = names.activation
        activation = str(config.get(setting) or config.get("hidden_act") or default)
        num_layers = _read_num_layers(config, "n_layer", "num_hidden_layers")
        layer_types = tuple(_layer_type(names, config, layer) for layer in range(num_layers))
        _check_rope(config, layer_types)
        both_sides = _read_window(config, "local_attention") if SLIDING in layer_types else 0
        return cls(
            hidden=read_size(config, "n_embd", "hidden_size"),
            num_heads=read_size(config, "n_head", "num_attention_heads"),
            intermediate_size=read_size(config, "n_inner", "intermediate_size"),
            eps=next((read_number(config, name, 0) for name in _EPS if config.get(name)), names.default_eps),
            activation={"swiglu": "silu"}.get(activation, activation),
            is_gated=_is_gated(names, config),
            experts=ExpertSizes.of(config),
            layer_types=layer_types,
            window=(both_sides or 128) // 2 + 1,
            attention_bias=is_set(names.attention_bias),
            mlp_bias=is_set(names.mlp_bias),
            out_bias=is_set(names.out_bias),
            norm_bias=is_set(names.norm_bias),
        )


def _is_gated(names: RotaryNames, config: Config) -> bool:
    """Whether MLPs have gates: always or never, but in NomicBERT by its activation."""
    has_gates = config.get("activation_function") in (None, "swiglu") and not config.get("num_experts")
    return bool(names.up) and has_gates


def _layer_type(names: RotaryNames, config: Config, layer: int) -> str:
    if not names.has_windows:
        return FULL
    every = read_whole(config, "global_attn_every_n_layers") or 3
    return SLIDING if _by_layer_types(config, layer, layer % every != 0) else FULL


NamesT = TypeVar("NamesT", BertNames, RotaryNames)


@dataclass(frozen=True, slots=True)
class DecoderSwitches:
    """The layout of decoders: how a family differs from Llama."""

    is_sliding: Callable[[Config, int], bool] = lambda config, layer: False  # whether a layer has a sliding window
    qkv_bias: bool = False  # queries, keys and values have a bias, even if config.json has no `attention_bias`
    qk_norm: bool = False  # RMSNorm over each head of the queries and keys
    gemma: bool = False  # RMSNorm scales by 1 + weight; embeddings times sqrt(H)
    # Gemma 2 and 3: norms also after attention and MLP, and the scale and soft cap of scores that config.json names.
    out_norms: bool = False
    bidirectional: bool = False  # attention is never causal, whatever config.json says

    @property
    def names(self) -> TensorNames:
        """The names of the layers in checkpoints."""
        return GEMMA if self.out_norms else LLAMA


def find_layout(layouts: Sequence[NamesT], has_layer: Callable[[str], bool]) -> NamesT:
    """Returns the layout whose telling layer a checkpoint has; the first one if it has none of them."""
    return next((known for known in layouts if has_layer(known.telling_layer)), layouts[0])


def every_layer(config: Config, layer: int) -> bool:
    """Returns True. For Mistral, which ignores `layer_types`."""
    return True


def upper_layers(config: Config, layer: int) -> bool:
    """Whether the layer is at or above `max_window_layers` in a model with windows. For Qwen."""
    if not config.get("use_sliding_window"):
        return False
    first = 28 if config.get("max_window_layers") is None else read_whole(config, "max_window_layers")
    return _by_layer_types(config, layer, layer >= first)


def even_layers(config: Config, layer: int) -> bool:
    """Whether the number of the layer is even. For Gemma 2."""
    return _by_layer_types(config, layer, layer % 2 == 0)


def all_but_every_sixth_layer(config: Config, layer: int) -> bool:
    """Whether the layer is not the last in its group of six. For Gemma 3."""
    # transformers ignores the saved `_sliding_window_pattern`.
    every = read_whole(config, "sliding_window_pattern") or 6
    return _by_layer_types(config, layer, (layer + 1) % every != 0)


def _by_layer_types(config: Config, layer: int, otherwise: bool) -> bool:
    """Whether `layer_types` (transformers 5) says that the layer is sliding; `otherwise` if there is no such key."""
    types = config.get("layer_types")
    return types[layer] == SLIDING if types else otherwise


# The projection of every token vector that voyage-4-nano's class (`Qwen3BidirectionalModel`) has after its decoder.
PROJECTION = "linear"


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Sizes of a decoder, from config.json."""

    config: Config
    hidden: int
    num_layers: int
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads (grouped-query attention)
    head_size: int
    intermediate_size: int
    eps: float
    activation: str
    scale: float  # attention scores are query @ key * scale
    soft_cap: float | None  # attention scores become soft_cap * tanh(score / soft_cap) (Gemma 2)
    layer_types: tuple[str, ...]  # FULL or SLIDING for each layer
    bidirectional: bool  # attention is not causal

    @classmethod
    def of(cls, switches: DecoderSwitches, config: Config) -> DecoderSizes:
        """Reads config.json. Raises UnsupportedModelError for a size that is missing or impossible."""
        hidden, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
        head_size = read_size(config, "head_dim", default=hidden // num_heads)
        num_kv_heads = read_size(config, "num_key_value_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise UnsupportedModelError(f"{num_heads} query heads are not a multiple of {num_kv_heads} key heads")
        num_layers, has_window = _read_num_layers(config, "num_hidden_layers"), bool(config.get("sliding_window"))
        layer_types = tuple(
            SLIDING if has_window and switches.is_sliding(config, layer) else FULL for layer in range(num_layers)
        )
        _check_rope(config, layer_types)
        scaled_by = (read_number(config, "query_pre_attn_scalar", 0) if switches.out_norms else 0) or head_size
        return cls(
            config=config,
            hidden=hidden,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            intermediate_size=read_size(config, "intermediate_size"),
            eps=read_number(config, "rms_norm_eps", 1e-6),
            activation=str(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
            scale=scaled_by**-0.5,
            soft_cap=(read_number(config, "attn_logit_softcapping", 0) if switches.out_norms else 0) or None,
            layer_types=layer_types,
            bidirectional=switches.bidirectional
            or bool(config.get("use_bidirectional_attention"))
            or config.get("is_causal") is False,
        )

    def window(self, switches: DecoderSwitches, layer_type: str) -> int | None:
        """A token attends to tokens less than this many positions away; None: to any. For one type of layer."""
        if layer_type == FULL:
            return None
        window = _read_window(self.config, "sliding_window")
        if not self.bidirectional:
            return window
        # Gemma 3: `sliding_window` counts both sides together. `is_causal` false: the distance `sliding_window` counts.
        both_sides = switches.gemma and self.config.get("use_bidirectional_attention")
        return window // 2 + 1 if both_sides else window + 1


def _check_rope(config: Config, layer_types: Sequence[str]) -> None:
    """Raises UnsupportedModelError as `rope_settings`, for the types of layers that the model has."""
    for layer_type in dict.fromkeys(layer_types):
        rope_settings(config, layer_type=layer_type)


def _read_window(config: Config, name: str) -> int:
    """Returns a size of windows; one that is larger than any text may be large."""
    return min(read_whole(config, name, most=1 << 62), MAX_SIZE)


def _read_num_layers(config: Config, *names: str) -> int:
    """Raises UnsupportedModelError if `layer_types` is not a list, or has fewer entries than there are layers."""
    num_layers = read_size(config, *names, most=MAX_LAYERS)
    types = config.get("layer_types") or []
    if not isinstance(types, list):
        raise UnsupportedModelError(f"config.json: layer_types {types!r} is not a list")
    if types and len(types) < num_layers:
        raise UnsupportedModelError(f"config.json: layer_types has {len(types)} entries for {num_layers} layers")
    return num_layers


_JINA_GATES = {"geglu": "gelu", "reglu": "relu"}  # `feed_forward_type` to the activation of the gate


def _jina_gate(config: Config) -> str:
    """Returns the activation of JinaBERT's gated MLPs. Raises UnsupportedModelError for MLPs without gates."""
    feed_forward = str(config.get("feed_forward_type", "geglu"))
    if feed_forward not in _JINA_GATES:
        raise UnsupportedModelError(
            f"config.json: feed_forward_type {feed_forward!r} is not supported; JinaBERT needs one of {[*_JINA_GATES]}"
        )
    return _JINA_GATES[feed_forward]


T5_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"  # of the first layer, used by all layers
# A file has one of the two, or both; if they differ, the class uses the encoder's.
T5_WORDS = ("encoder.embed_tokens.weight", "shared.weight")


def t5_activation(config: Config) -> tuple[str, bool]:
    """Returns (activation of T5's MLPs, whether they are gated)."""
    kind = str(config.get("feed_forward_proj", "relu"))
    # In transformers, "gated-gelu" means the tanh approximation of gelu; any other name means what it says.
    return "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-"), kind.startswith("gated-")
