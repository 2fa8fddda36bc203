"""The layouts of encoders whose positions are not rotary: BERT-like encoders, DeBERTa and T5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import MAX_LAYERS, MAX_SIZE, Config, read_number, read_setting, read_size, read_whole
from bei_core.models.deberta import Disentangled
from bei_core.models.layouts import Layout
from bei_core.models.sizes import FULL, Heads, Sizes
from bei_core.models.tensor_names import FLASH_NAMES, TensorNames

_BERT_NAMES = TensorNames(
    embedding_norm="embeddings.LayerNorm",
    layer="encoder.layer.{}.",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    mlp_norm="output.LayerNorm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BertLayout(Layout):
    """BERT-like encoders: post-norm layers, and usually a table of positions."""

    name: ClassVar[str] = "bert"
    names: tuple[TensorNames, ...] = (_BERT_NAMES,)
    padding_id: int | str | None = None  # see `Sizes.padding_id`; a string is the key in config.json
    has_types: bool = True
    has_task_types: bool = False  # see `Sizes.has_task_type`
    # JinaBERT: attention has ALiBi, so there is no position table, and MLPs have gates.
    has_alibi: bool = False
    config_names: Mapping[str, str] = field(default_factory=dict)  # BERT's name of a key in config.json -> this one's

    @property
    def has_score_bias(self) -> bool:
        """Whether numbers are added to attention scores by the distance of two tokens."""
        return self.has_alibi or any(names.relative_bias for names in self.names)

    def sizes(self, config: Config) -> Sizes:
        """See `Layout.sizes`. Other position embeddings, and causal attention, are not supported."""
        self._check_attention(config)

        def key(name: str) -> str:
            return self.config_names.get(name, name)

        def number(name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
            return read_size(config, key(name), default=default, most=most)

        hidden = number("hidden_size")
        return Sizes(
            config=config,
            hidden=hidden,
            heads=Heads.even(hidden, number("num_attention_heads")),
            intermediate_size=number("intermediate_size"),
            activation=_jina_gate(config) if self.has_alibi else str(read_setting(config, key("hidden_act"))),
            eps=read_number(config, "layer_norm_eps", 1e-12),
            layer_types=(FULL,) * number("num_hidden_layers", most=MAX_LAYERS),
            vocab_size=number("vocab_size"),
            width=(read_whole(config, "embedding_size") or None) if self.names[0].normed_projection else None,
            num_positions=0 if self.has_alibi else number("max_position_embeddings"),
            padding_id=self._padding_id(config),
            num_types=number("type_vocab_size", 2) if self.has_types and config.get("type_vocab_size") != 0 else 0,
            has_task_type=self.has_task_types and bool(config.get("use_task_id")),
            has_alibi=self.has_alibi,
            qkv_bias=True,
            out_bias=True,
            is_gated=self.has_alibi,
            mlp_bias=not self.has_alibi,
            mlp_out_bias=True,
        )

    def _check_attention(self, config: Config) -> None:
        if config.get("is_decoder"):
            raise UnsupportedModelError("config.json: is_decoder true (attention to earlier tokens) is not supported")
        found, known = config.get("position_embedding_type") or "absolute", "alibi" if self.has_alibi else "absolute"
        if found != known:
            raise UnsupportedModelError(
                f"config.json: position_embedding_type {found!r} is not supported, only {known!r}"
            )

    def has_position_table(self, config: Config) -> bool:
        """See `Layout.has_position_table`."""
        return not self.has_alibi

    def first_position(self, config: Config) -> int:
        """See `Layout.first_position`."""
        padding_id = self._padding_id(config)
        return 0 if padding_id is None else padding_id + 1

    def _padding_id(self, config: Config) -> int | None:
        """Returns `Sizes.padding_id`, which is 1 if config.json has none."""
        if not isinstance(self.padding_id, str):
            return self.padding_id
        value = config.get(self.padding_id)
        return 1 if value is None else read_size(config, self.padding_id, least=0)


_JINA_GATES = {"geglu": "gelu", "reglu": "relu"}  # `feed_forward_type` to the activation of the gate


def _jina_gate(config: Config) -> str:
    """Returns the activation of JinaBERT's gated MLPs. Raises UnsupportedModelError for MLPs without gates."""
    feed_forward = str(config.get("feed_forward_type", "geglu"))
    if feed_forward not in _JINA_GATES:
        raise UnsupportedModelError(
            f"config.json: feed_forward_type {feed_forward!r} is not supported; JinaBERT needs one of {[*_JINA_GATES]}"
        )
    return _JINA_GATES[feed_forward]


BERT = BertLayout()
ERNIE = BertLayout(has_task_types=True)
ELECTRA = BertLayout(names=(replace(_BERT_NAMES, normed_projection="embeddings_project"),))
ROBERTA = BertLayout(
    names=(
        _BERT_NAMES,
        FLASH_NAMES,
    ),
    padding_id="pad_token_id",
)
DISTILBERT = BertLayout(
    names=(
        TensorNames(
            embedding_norm="embeddings.LayerNorm",
            layer="transformer.layer.{}.",
            qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            out="attention.out_lin",
            attention_norm="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            mlp_norm="output_layer_norm",
        ),
    ),
    has_types=False,
    config_names={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
)
MPNET = BertLayout(
    names=(
        replace(
            _BERT_NAMES,
            qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            out="attention.attn.o",
            attention_norm="attention.LayerNorm",
            relative_bias="encoder.relative_attention_bias",
        ),
    ),
    padding_id=1,  # transformers' MPNet ignores pad_token_id
    has_types=False,
)
_JINA_NAMES = replace(_BERT_NAMES, gated=("mlp.gated_layers",), up="", down="mlp.wo", mlp_norm="mlp.layernorm")
# JinaBERT v2 (Günther et al. 2023). Two published classes have this name: `jinaai/jina-bert-implementation`
# (jina-embeddings-v2, jina-reranker-v1) and `jinaai/jina-bert-v2-qk-post-norm` (jina-embeddings-v2-base-code), which
# also has norms of queries and keys, and one more residual connection and norm around attention.
JINA_BERT = BertLayout(
    names=(
        _JINA_NAMES,
        replace(
            _JINA_NAMES,
            gated=("mlp.up_gated_layer",),
            up_first=True,
            down="mlp.down_layer",
            mlp_norm="layer_norm_2",
            qk_norms=("attention.self.layer_norm_q", "attention.self.layer_norm_k"),
            attention_out_norm="layer_norm_1",
        ),
    ),
    has_alibi=True,
)


class DebertaLayout(Layout):
    """DeBERTa v2 and v3: the layers of BERT with disentangled attention."""

    name: ClassVar[str] = "deberta"

    def sizes(self, config: Config) -> Sizes:
        """See `Layout.sizes`."""
        disentangled = Disentangled.of(config)
        hidden, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
        is_absolute = self.has_position_table(config)
        return Sizes(
            config=config,
            hidden=hidden,
            heads=Heads.even(hidden, num_heads, num_scores=1 + len(disentangled.kinds)),
            intermediate_size=read_size(config, "intermediate_size"),
            activation=str(config.get("hidden_act", "gelu")),
            eps=read_number(config, "layer_norm_eps", 1e-7),
            layer_types=(FULL,) * read_size(config, "num_hidden_layers", most=MAX_LAYERS),
            width=read_whole(config, "embedding_size") or None,
            num_positions=read_size(config, "max_position_embeddings") if is_absolute else 0,
            num_types=read_whole(config, "type_vocab_size"),
            disentangled=disentangled,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            mlp_out_bias=True,
        )

    def has_position_table(self, config: Config) -> bool:
        """See `Layout.has_position_table`."""
        return bool(config.get("position_biased_input", True))


DEBERTA = DebertaLayout(
    names=(
        replace(
            _BERT_NAMES,
            projection="embeddings.embed_proj",
            qkv=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        ),
    )
)


class T5Layout(Layout):
    """The encoders of T5 and mT5 (Raffel et al. 2020): pre-norm layers, biases by distance, no scaling of scores.

    As in `T5EncoderModel`, a decoder in the checkpoint is ignored.
    """

    name: ClassVar[str] = "t5"

    def sizes(self, config: Config) -> Sizes:
        """See `Layout.sizes`."""
        num_heads = read_size(config, "num_heads")
        activation, is_gated = _mlp_of_t5(config)
        return Sizes(
            config=config,
            hidden=read_size(config, "d_model"),
            heads=Heads(num_heads, num_heads, read_size(config, "d_kv"), scale=1.0),
            intermediate_size=read_size(config, "d_ff"),
            activation=activation,
            eps=read_number(config, "layer_norm_epsilon", 1e-6),
            layer_types=(FULL,) * read_size(config, "num_layers", most=MAX_LAYERS),
            num_buckets=read_size(config, "relative_attention_num_buckets", default=32),
            max_distance=read_size(config, "relative_attention_max_distance", default=128),
            is_rms=True,
            is_gated=is_gated,
        )


def _mlp_of_t5(config: Config) -> tuple[str, bool]:
    """Returns the activation of T5's MLPs, and whether they are gated.

    transformers derives both from `feed_forward_proj`, writes them into config.json as `dense_act_fn` and
    `is_gated_act`, and reads them from there. Only in `feed_forward_proj`, "gelu" of a gated one is the tanh
    approximation.
    """
    found = str(config.get("feed_forward_proj", "relu"))
    activation, is_gated = config.get("dense_act_fn"), config.get("is_gated_act")
    if activation is None:
        activation = "gelu_new" if found == "gated-gelu" else found.removeprefix("gated-")
    return str(activation), found.startswith("gated-") if is_gated is None else bool(is_gated)


_T5_NAMES = TensorNames(
    words="encoder.embed_tokens",
    relative_bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",  # of the first layer
    layer="encoder.block.{}.layer.",
    qkv=("0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"),
    out="0.SelfAttention.o",
    attention_norm="0.layer_norm",
    gated=("1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1"),
    up="1.DenseReluDense.wi",
    down="1.DenseReluDense.wo",
    mlp_norm="1.layer_norm",
    final_norm="encoder.final_layer_norm",
)
# A file has one of the two tensors of words, or both; if they differ, the class uses the encoder's.
T5 = T5Layout(names=(_T5_NAMES, replace(_T5_NAMES, words="shared")))
