"""What engines need to know of BERT's kin and of decoders whatever they run on: names of tensors, switches, sizes.

Read in transformers 5.23's `models/{bert,electra,roberta,xlm_roberta,distilbert,mpnet}` and
`models/{llama,mistral,qwen2,qwen3,gemma2,gemma3}`, modeling and configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bei_core.errors import UnsupportedModelError
from bei_core.models.spec import first_position

Config = Mapping[str, Any]  # config.json

FULL, SLIDING = "full_attention", "sliding_attention"  # what a layer's tokens see, in transformers' words


@dataclass(frozen=True, slots=True)
class BertNames:
    """Where one family keeps its tensors, and how its config.json names its sizes."""

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
    first_position: int | None = 0  # row of the position table for a text's first token; None: see spec
    has_types: bool = True
    relative_attention: str | None = None  # tensor of a bucketed table of biases
    config_names: Mapping[str, str] = field(default_factory=dict)

    def setting(self, config: Config, name: str, default: object = None) -> Any:  # noqa: ANN401
        """A value of config.json by BERT's name for it. Raises UnsupportedModelError where it is not there."""
        known = self.config_names.get(name, name)
        value = config.get(known, default)
        if value is None:
            raise UnsupportedModelError(f"config.json has no `{known}`")
        return value


BERTS: Mapping[str, BertNames] = {
    "bert": BertNames(prefixes=("", "bert.")),
    "electra": BertNames(prefixes=("", "electra.")),
    "roberta": BertNames(prefixes=("", "roberta."), first_position=None),
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
        first_position=2,  # its padding id is 1 whatever config.json says
        has_types=False,
        relative_attention="encoder.relative_attention_bias.weight",
    ),
}

BERT_ANCHOR = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class BertSizes:
    """What config.json says of a model of BERT's kind."""

    hidden: int
    num_layers: int
    num_heads: int
    inner: int  # of the feed-forward layers
    eps: float
    activation: str
    vocab: int
    num_types: int  # 0 of a family without token types
    table_len: int  # rows of the position table
    first: int  # row of the position table for a text's first token

    @classmethod
    def of(cls, names: BertNames, config: Config) -> BertSizes:
        """The sizes of one checkpoint.

        Raises UnsupportedModelError for one that is missing, or for relative positions.
        """
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedModelError(
                f"position_embedding_type {config['position_embedding_type']!r} is not supported"
            )

        def number(name: str, default: int | None = None) -> int:
            return int(names.setting(config, name, default))

        return cls(
            hidden=number("hidden_size"),
            num_layers=number("num_hidden_layers"),
            num_heads=number("num_attention_heads"),
            inner=number("intermediate_size"),
            eps=float(names.setting(config, "layer_norm_eps", 1e-12)),
            activation=str(names.setting(config, "hidden_act")),
            vocab=number("vocab_size"),
            num_types=number("type_vocab_size", 2) if names.has_types else 0,
            table_len=number("max_position_embeddings"),
            first=first_position(config) if names.first_position is None else names.first_position,
        )


@dataclass(frozen=True, slots=True)
class DecoderSwitches:
    """What sets one family apart from Llama."""

    windows: Callable[[Config, int], bool] = lambda config, layer: False  # whether a layer's attention slides
    qkv_bias: bool = False  # whether config.json need not say so
    qk_norm: bool = False  # queries and keys are normalised, head by head
    gemma: bool = False  # RMSNorm scales by 1 + weight, norms also follow each part, embeddings times sqrt(hidden)
    defaults: Config = field(default_factory=dict)  # of keys that config.json may lack, as transformers has them


def _every(config: Config, layer: int) -> bool:
    return True  # whatever `layer_types` says


def _upper(config: Config, layer: int) -> bool:
    if not config.get("use_sliding_window"):
        return False
    return _listed(config, layer, layer >= int(config.get("max_window_layers", 28)))


def _alternate(config: Config, layer: int) -> bool:
    return _listed(config, layer, layer % 2 == 0)


def _five_of_six(config: Config, layer: int) -> bool:
    every = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    return _listed(config, layer, (layer + 1) % every != 0)


def _listed(config: Config, layer: int, otherwise: bool) -> bool:
    """What transformers 5's `layer_types` says of a layer, where config.json has it."""
    types = config.get("layer_types")
    return types[layer] == SLIDING if types else otherwise


_GEMMA = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}

DECODERS: Mapping[str, DecoderSwitches] = {
    "llama": DecoderSwitches(),
    "mistral": DecoderSwitches(windows=_every, defaults={"sliding_window": 4096}),
    "qwen2": DecoderSwitches(windows=_upper, qkv_bias=True, defaults={"sliding_window": 4096}),
    "qwen3": DecoderSwitches(windows=_upper, qk_norm=True, defaults={"sliding_window": 4096, "head_dim": 128}),
    "gemma2": DecoderSwitches(windows=_alternate, gemma=True, defaults={**_GEMMA, "attn_logit_softcapping": 50.0}),
    "gemma3_text": DecoderSwitches(
        windows=_five_of_six,
        qk_norm=True,
        gemma=True,
        defaults={**_GEMMA, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
}

DECODER_PREFIXES, DECODER_ANCHOR = ("", "model."), "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """What config.json says of a decoder."""

    config: Config  # with the family's defaults
    hidden: int
    num_layers: int
    num_queries: int  # heads of queries
    num_keys: int  # heads of keys and of values, each shared by several of the queries'
    head_size: int
    inner: int  # of the feed-forward layers
    eps: float
    activation: str
    scale: float  # of products of queries and keys
    soft_cap: float | None  # of scores (Gemma 2)
    kinds: tuple[str, ...]  # FULL or SLIDING of each layer
    both_ways: bool  # whether tokens see those after them too

    @classmethod
    def of(cls, switches: DecoderSwitches, config: Config) -> DecoderSizes:
        """The sizes of one checkpoint. Raises UnsupportedModelError for one that is missing or impossible."""
        config = {**switches.defaults, **config}
        hidden, queries = int(setting(config, "hidden_size")), int(setting(config, "num_attention_heads"))
        size, keys = int(config.get("head_dim") or hidden // queries), int(config.get("num_key_value_heads") or queries)
        if queries % keys:
            raise UnsupportedModelError(f"{queries} query heads are not a multiple of {keys} key heads")
        num_layers, slides = int(setting(config, "num_hidden_layers")), bool(config.get("sliding_window"))
        scaled_by = float(config.get("query_pre_attn_scalar") or size) if switches.gemma else size
        return cls(
            config=config,
            hidden=hidden,
            num_layers=num_layers,
            num_queries=queries,
            num_keys=keys,
            head_size=size,
            inner=int(setting(config, "intermediate_size")),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            activation=str(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
            scale=scaled_by**-0.5,
            soft_cap=config.get("attn_logit_softcapping") if switches.gemma else None,
            kinds=tuple(SLIDING if slides and switches.windows(config, at) else FULL for at in range(num_layers)),
            both_ways=bool(config.get("use_bidirectional_attention")) or config.get("is_causal") is False,
        )

    def window(self, switches: DecoderSwitches, kind: str) -> int | None:
        """Tokens that a token of such a layer sees, itself included, to one side; None: all of them."""
        if kind == FULL:
            return None
        window = int(self.config["sliding_window"])
        # Of Gemma it is the width of both sides together.
        return window // 2 + 1 if self.both_ways and switches.gemma else window


def setting(config: Config, name: str, *others: str) -> Any:  # noqa: ANN401
    """A value that config.json must have, under the first of these names. Raises UnsupportedModelError naming it."""
    for known in (name, *others):
        if config.get(known) is not None:
            return config[known]
    raise UnsupportedModelError(f"config.json has no `{name}`")


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer, with one before it and a norm between where the family has them; names are whole."""

    out: str
    dense: str | None = None
    activation: str = "tanh"
    activation_of: str | None = None  # config.json's key, where the activation is not always the same
    norm: str | None = None
    bias: str | None = None  # of the last layer, where it does not go by that layer's name
    takes: Literal["cls", "classifier_pooling", "last real token"] = "cls"  # of a text, for one row


@dataclass(frozen=True, slots=True)
class FamilyHeads:
    """The heads of a family, by what follows its name in the class's; None where there is no such class."""

    sequence: Head | None = None
    token: Head | None = Head("classifier")
    vocabulary: Head | None = None


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
_MODERN = Head("classifier", "head.dense", "gelu", "classifier_activation", "head.norm", takes="classifier_pooling")

HEADS: Mapping[str, FamilyHeads] = {
    "Bert": FamilyHeads(Head("classifier", "bert.pooler.dense"), vocabulary=_BERT_VOCABULARY),
    "Roberta": _ROBERTA,
    "XLMRoberta": _ROBERTA,
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
    "New": FamilyHeads(Head("classifier", "new.pooler.dense")),
    "Gte": FamilyHeads(Head("classifier", "gte.pooler.dense")),
    "DebertaV2": FamilyHeads(
        Head("classifier", "pooler.dense", "gelu", "pooler_hidden_act"), vocabulary=_BERT_VOCABULARY
    ),
}
_DECODER = FamilyHeads(sequence=Head("score", takes="last real token"), token=Head("score"))


def heads_of(family: str) -> FamilyHeads:
    """The heads of a family; a decoder's where it is not in the table."""
    return HEADS.get(family, _DECODER)
