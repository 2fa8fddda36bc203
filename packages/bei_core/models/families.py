"""Model families, independent of the engine: names of tensors, settings in config.json, sizes, heads.

Source: transformers 5.23, `models/{bert,electra,roberta,xlm_roberta,distilbert,mpnet}` and
`models/{llama,mistral,qwen2,qwen3,gemma2,gemma3}`, files `modeling_*.py` and `configuration_*.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import MAX_LAYERS, Config, first_position, read_size

# Other names of an activation in transformers' `ACT2FN`, and the name under which an engine's table has it.
ACTIVATION_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "gelu_tanh"),
    "gelu_python": "gelu",
    "swish": "silu",
    "linear": "identity",
}

_CLASS = re.compile(r"(\w+?)(?:Text)?(?:Model|For\w+)")

FULL, SLIDING = "full_attention", "sliding_attention"  # types of attention layers, as transformers names them


def family_name(architecture: str) -> str:
    """The family in the name of a transformers class: "Llama" of "LlamaForCausalLM"; "" for a name of another form."""
    match = _CLASS.fullmatch(architecture)
    return match.group(1) if match else ""


@dataclass(frozen=True, slots=True)
class BertNames:
    """Names of one BERT-like family: of its tensors, and of its settings in config.json."""

    prefixes: tuple[str, ...]
    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    out_norm: str = "output.LayerNorm"
    embeddings_norm: str = "embeddings.LayerNorm"
    qkv: str | None = None  # the fused layer that some checkpoints have instead of query, key and value
    first_position: int | None = 0  # row of the position table for a sequence's first token; None: see models/spec
    has_types: bool = True
    relative_attention: str | None = None  # tensor of bucketed relative position biases
    config_names: Mapping[str, str] = field(default_factory=dict)

    def read_setting(self, config: Config, name: str, default: object = None) -> Any:  # noqa: ANN401
        """A value of config.json by BERT's name for it. Raises UnsupportedModelError if it is missing."""
        known = self.config_names.get(name, name)
        value = config.get(known, default)
        if value is None:
            raise UnsupportedModelError(f"config.json has no `{known}`")
        return value


BERTS: Mapping[str, BertNames] = {
    "bert": BertNames(prefixes=("", "bert.")),
    "electra": BertNames(prefixes=("", "electra.")),
    "roberta": BertNames(prefixes=("", "roberta."), first_position=None),
    # jinaai/xlm-roberta-flash-implementation: the same layers under the names of the flash-attention library.
    "roberta_flash": BertNames(
        prefixes=("", "roberta."),
        layer="encoder.layers.{}.",
        qkv="mixer.Wqkv",
        attention_out="mixer.out_proj",
        attention_norm="norm1",
        up="mlp.fc1",
        down="mlp.fc2",
        out_norm="norm2",
        embeddings_norm="emb_ln",
        first_position=None,
    ),
    "distilbert": BertNames(
        prefixes=("", "distilbert."),
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_out="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        out_norm="output_layer_norm",
        has_types=False,
        config_names={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
    ),
    "mpnet": BertNames(
        prefixes=("", "mpnet."),
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_out="attention.attn.o",
        attention_norm="attention.LayerNorm",
        first_position=2,  # transformers' MPNet ignores pad_token_id and uses 1
        has_types=False,
        relative_attention="encoder.relative_attention_bias.weight",
    ),
}

BERT_ANCHOR = "embeddings.word_embeddings.weight"


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
    num_positions: int  # rows of the position table
    first_position: int  # row of the position table for a sequence's first token

    @classmethod
    def of(cls, names: BertNames, config: Config) -> BertSizes:
        """Reads config.json. Raises UnsupportedModelError for a missing size or a relative position embedding."""
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedModelError(
                f"position_embedding_type {config['position_embedding_type']!r} is not supported"
            )

        def number(name: str, default: int | None = None) -> int:
            return read_size(config, names.config_names.get(name, name), default=default)

        return cls(
            hidden=number("hidden_size"),
            num_layers=number("num_hidden_layers"),
            num_heads=number("num_attention_heads"),
            intermediate_size=number("intermediate_size"),
            eps=float(names.read_setting(config, "layer_norm_eps", 1e-12)),
            activation=str(names.read_setting(config, "hidden_act")),
            vocab_size=number("vocab_size"),
            num_types=number("type_vocab_size", 2) if names.has_types and config.get("type_vocab_size") != 0 else 0,
            num_positions=number("max_position_embeddings"),
            first_position=first_position(config) if names.first_position is None else names.first_position,
        )


@dataclass(frozen=True, slots=True)
class DecoderSwitches:
    """How a decoder family differs from Llama."""

    is_sliding: Callable[[Config, int], bool] = lambda config, layer: False  # whether a layer has a sliding window
    qkv_bias: bool = False  # queries, keys and values have a bias, also if config.json lacks `attention_bias`
    qk_norm: bool = False  # RMSNorm over each head of the queries and keys
    gemma: bool = False  # RMSNorm scales by 1 + weight; norms also after attention and MLP; embeddings times sqrt(H)
    bidirectional: bool = False  # attention is never causal, whatever config.json says
    defaults: Config = field(default_factory=dict)  # transformers' defaults for keys that config.json may lack


def _every_layer(config: Config, layer: int) -> bool:
    return True  # Mistral ignores `layer_types`


def _upper_layers(config: Config, layer: int) -> bool:
    if not config.get("use_sliding_window"):
        return False
    return _by_layer_types(config, layer, layer >= int(config.get("max_window_layers", 28)))


def _even_layers(config: Config, layer: int) -> bool:
    return _by_layer_types(config, layer, layer % 2 == 0)


def _all_but_every_sixth_layer(config: Config, layer: int) -> bool:
    every = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    return _by_layer_types(config, layer, (layer + 1) % every != 0)


def _by_layer_types(config: Config, layer: int, otherwise: bool) -> bool:
    """Whether `layer_types` (transformers 5) names the layer as sliding; `otherwise` if config.json lacks it."""
    types = config.get("layer_types")
    return types[layer] == SLIDING if types else otherwise


_GEMMA = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}

_QWEN3 = DecoderSwitches(is_sliding=_upper_layers, qk_norm=True, defaults={"sliding_window": 4096, "head_dim": 128})

DECODERS: Mapping[str, DecoderSwitches] = {
    "llama": DecoderSwitches(),
    "mistral": DecoderSwitches(is_sliding=_every_layer, defaults={"sliding_window": 4096}),
    "qwen2": DecoderSwitches(is_sliding=_upper_layers, qkv_bias=True, defaults={"sliding_window": 4096}),
    "qwen3": _QWEN3,
    "llama_bidirectional": DecoderSwitches(bidirectional=True),
    "qwen3_bidirectional": replace(_QWEN3, bidirectional=True),
    "gemma2": DecoderSwitches(is_sliding=_even_layers, gemma=True, defaults={**_GEMMA, "attn_logit_softcapping": 50.0}),
    "gemma3_text": DecoderSwitches(
        is_sliding=_all_but_every_sixth_layer,
        qk_norm=True,
        gemma=True,
        defaults={**_GEMMA, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
}

DECODER_PREFIXES, DECODER_ANCHOR = ("", "model."), "embed_tokens.weight"

# The projection of every token vector that voyage-4-nano's class (`Qwen3BidirectionalModel`) has after its decoder.
DECODER_PROJECTION = "linear"


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Sizes of a decoder, from config.json."""

    config: Config  # with the family's defaults
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
        config = {**switches.defaults, **config}
        hidden, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
        head_size = read_size(config, "head_dim", default=hidden // num_heads)
        num_kv_heads = read_size(config, "num_key_value_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise UnsupportedModelError(f"{num_heads} query heads are not a multiple of {num_kv_heads} key heads")
        num_layers, has_window = _read_num_layers(config), bool(config.get("sliding_window"))
        scaled_by = float(config.get("query_pre_attn_scalar") or head_size) if switches.gemma else head_size
        return cls(
            config=config,
            hidden=hidden,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            intermediate_size=read_size(config, "intermediate_size"),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            activation=str(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
            scale=scaled_by**-0.5,
            soft_cap=config.get("attn_logit_softcapping") if switches.gemma else None,
            layer_types=tuple(
                SLIDING if has_window and switches.is_sliding(config, layer) else FULL for layer in range(num_layers)
            ),
            bidirectional=switches.bidirectional
            or bool(config.get("use_bidirectional_attention"))
            or config.get("is_causal") is False,
        )

    def window(self, switches: DecoderSwitches, layer_type: str) -> int | None:
        """A token attends to tokens less than this many positions away; None: to any. For one type of layer."""
        if layer_type == FULL:
            return None
        window = int(self.config["sliding_window"])
        # Bidirectional Gemma: `sliding_window` counts both sides together.
        return window // 2 + 1 if self.bidirectional and switches.gemma else window


def _read_num_layers(config: Config) -> int:
    """Raises UnsupportedModelError if `layer_types` has fewer entries than there are layers."""
    num_layers = read_size(config, "num_hidden_layers", most=MAX_LAYERS)
    types = config.get("layer_types")
    if types and len(types) < num_layers:
        raise UnsupportedModelError(f"config.json: layer_types has {len(types)} entries for {num_layers} layers")
    return num_layers


@dataclass(frozen=True, slots=True)
class Head:
    """A head: a linear layer `out`, optionally after dense layer, activation and norm. Names are whole tensor names."""

    out: str
    dense: str | None = None
    activation: str = "tanh"
    activation_of: str | None = None  # key in config.json that names the activation, if there is one
    norm: str | None = None
    bias: str | None = None  # tensor of the bias of `out`, if it is not "{out}.bias"
    # The input of a sequence classifier: a token, or the pooling that config.json names under this key.
    pooling: Literal["cls", "classifier_pooling", "pooling", "last non-padding token"] = "cls"
    temperature: str | None = None  # key in config.json of a number that the logits are divided by


@dataclass(frozen=True, slots=True)
class FamilyHeads:
    """The heads of a family; None if transformers has no such class for it."""

    sequence: Head | None = None  # ...ForSequenceClassification
    token: Head | None = Head("classifier")  # ...ForTokenClassification
    vocabulary: Head | None = None  # ...ForMaskedLM


_ROBERTA = FamilyHeads(
    sequence=Head("classifier.out_proj", "classifier.dense"),
    vocabulary=Head("lm_head.decoder", "lm_head.dense", "gelu", norm="lm_head.layer_norm", bias="lm_head.bias"),
)
_BERT_VOCABULARY = Head(
    "cls.predictions.decoder",
    "cls.predictions.transform.dense",
    "gelu",
    "hidden_act",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
)
_MODERN = Head("classifier", "head.dense", "gelu", "classifier_activation", "head.norm", pooling="classifier_pooling")

HEADS: Mapping[str, FamilyHeads] = {
    "Bert": FamilyHeads(Head("classifier", "bert.pooler.dense"), vocabulary=_BERT_VOCABULARY),
    "Roberta": _ROBERTA,
    "XLMRoberta": _ROBERTA,
    "XLMRobertaFlash": _ROBERTA,
    "Camembert": _ROBERTA,
    "MPNet": _ROBERTA,
    "Electra": FamilyHeads(
        sequence=Head("classifier.out_proj", "classifier.dense", "gelu"),
        vocabulary=Head(
            "generator_lm_head", "generator_predictions.dense", "gelu", norm="generator_predictions.LayerNorm"
        ),
    ),
    "DistilBert": FamilyHeads(
        sequence=Head("classifier", "pre_classifier", "relu"),
        vocabulary=Head("vocab_projector", "vocab_transform", "gelu", "activation", "vocab_layer_norm"),
    ),
    "ModernBert": FamilyHeads(_MODERN, _MODERN, replace(_MODERN, out="decoder")),
    "NomicBert": FamilyHeads(Head("classifier", "bert.pooler.dense"), vocabulary=_BERT_VOCABULARY),
    "JinaBert": FamilyHeads(Head("classifier", "bert.pooler.dense"), vocabulary=_BERT_VOCABULARY),
    "New": FamilyHeads(Head("classifier", "new.pooler.dense")),
    "Gte": FamilyHeads(Head("classifier", "gte.pooler.dense")),
    "DebertaV2": FamilyHeads(
        Head("classifier", "pooler.dense", "gelu", "pooler_hidden_act"), vocabulary=_BERT_VOCABULARY
    ),
    "LlamaBidirectional": FamilyHeads(Head("score", pooling="pooling", temperature="temperature"), token=None),
    **dict.fromkeys(("T5", "T5Encoder", "MT5", "MT5Encoder"), FamilyHeads(token=None)),
}
_DECODER = FamilyHeads(sequence=Head("score", pooling="last non-padding token"), token=Head("score"))


def heads_of(family: str) -> FamilyHeads:
    """The heads of a family; those of a decoder if the table has no entry."""
    return HEADS.get(family, _DECODER)
