"""`Sizes`: what an engine needs to know of a transformer besides its tensors, for all families."""

from __future__ import annotations

from dataclasses import dataclass

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config, read_size
from bei_core.models.deberta import Disentangled

FULL, SLIDING = "full_attention", "sliding_attention"  # types of attention layers, as transformers names them


@dataclass(frozen=True, slots=True)
class Heads:
    """The numbers and the size of attention heads."""

    num_heads: int  # N, query heads
    num_kv_heads: int  # K, key and value heads (grouped-query attention)
    head_size: int  # S
    scale: float  # attention scores are query @ key * scale

    @classmethod
    def even(cls, hidden: int, num_heads: int, num_scores: int = 1) -> Heads:
        """Returns heads of size hidden / num_heads. Raises UnsupportedModelError if that is not an integer.

        `num_scores` is how many kinds of scores are added up.
        """
        if hidden % num_heads:
            raise UnsupportedModelError(f"hidden size {hidden} is not a multiple of {num_heads} heads")
        size = hidden // num_heads
        return cls(num_heads, num_heads, size, (size * num_scores) ** -0.5)

    @property
    def width(self) -> int:
        """N * S."""
        return self.num_heads * self.head_size

    @property
    def widths(self) -> tuple[int, int, int]:
        """The widths of query, key and value: N * S, K * S and K * S."""
        kv_width = self.num_kv_heads * self.head_size
        return self.width, kv_width, kv_width


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes and options of a transformer, which the layout of its family (`models/layouts.py`) reads from config.json.

    What the names of tensors already say, such as pre-norm, is in `TensorNames`. A bias that is not named here is used,
    too, if the checkpoint has it.
    """

    config: Config  # `models/rope.py` reads it
    hidden: int  # H
    heads: Heads
    intermediate_size: int
    activation: str
    eps: float  # of all norms
    layer_types: tuple[str, ...]  # FULL or SLIDING for each layer

    # Embeddings.
    vocab_size: int | None = None  # rows of the table of words; None: config.json does not limit them
    width: int | None = None  # of the tables; None: H
    embedding_scale: float = 1.0  # embeddings are multiplied by it
    num_positions: int = 0  # rows of the position table; 0 for a family without it
    # The id of the tokens that have no position, also inside a text: they have its row of the position table, and the
    # positions of other tokens begin after this row. None: every token has one.
    padding_id: int | None = None
    # Rows of the type table; 0 for a family without token types; None: as many as the checkpoint has. A single row is
    # that of every token: some RoBERTas have BERT's tokenizer, which gives type 1 to the second text of a pair.
    num_types: int | None = 0
    has_task_type: bool = False  # whether each token also has the embedding of the first task type (ERNIE)

    # Attention.
    causal: bool = False
    window: int = 0  # in sliding layers, a token attends to tokens less than this many positions away
    soft_cap: float | None = None  # scores become soft_cap * tanh(score / soft_cap) (Gemma 2)
    has_rope: bool = False
    has_alibi: bool = False
    num_buckets: int | None = None  # rows of the table of biases by distance; None: as many as the checkpoint has
    max_distance: int = 128  # of these buckets
    disentangled: Disentangled | None = None  # DeBERTa

    # Norms.
    is_rms: bool = False  # RMSNorm, in attention over each head; else LayerNorm, in attention over all heads
    norm_offset: float = 0.0  # added to the stored weights of RMSNorm (1 for Gemma)
    norm_bias: bool = True

    # Linear layers.
    qkv_bias: bool = False
    out_bias: bool = False  # of attention
    is_gated: bool = False
    mlp_bias: bool = False
    mlp_out_bias: bool = False
    experts: ExpertSizes | None = None

    @property
    def num_layers(self) -> int:
        """The number of layers of the transformer."""
        return len(self.layer_types)

    def window_of(self, layer_type: str) -> int | None:
        """Returns the window of one type of layer; None if its tokens attend to tokens at any distance."""
        return self.window if layer_type == SLIDING else None
