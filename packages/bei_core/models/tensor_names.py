"""`TensorNames`: the names of a transformer's layers in checkpoints; `models/*_layouts.py` have them by family."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

POSITIONS = "embeddings.position_embeddings"
TYPES = "embeddings.token_type_embeddings"
TASK_TYPES = "embeddings.task_type_embeddings"  # of ERNIE


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """The names of the layers of a transformer, without the prefix of the checkpoint.

    From `qkv` to `mlp_out_norm` they are names within one of its layers; "" and (): there is no such layer.
    """

    words: str = "embeddings.word_embeddings"
    embedding_norm: str = ""
    projection: str = ""  # of embeddings that are narrower than H, before their norm
    normed_projection: str = ""  # the same after their norm
    relative_bias: str = ""  # the table of biases by distance, which all layers use
    layer: str  # the prefix of one layer of the transformer, with {} for its number
    qkv: tuple[str, ...]  # query, key and value, or one layer that has the three
    qk_norms: tuple[str, ...] = ()  # of queries and of keys
    out: str  # of attention
    attention_norm: str
    attention_out_norm: str = ""  # see `is_pre_norm`
    gated: tuple[str, ...] = ()  # the first of a gated MLP: gate and up, or one layer that has both
    up_first: bool = False  # whether up is before gate
    up: str = ""  # the first layer of a plain MLP
    router: str = "mlp.router.layer"
    experts: str = "mlp.experts"
    down: str  # the last layer of the MLP
    mlp_norm: str
    mlp_out_norm: str = ""
    final_norm: str = ""
    final_projection: str = ""  # of every token vector; it has no prefix

    @property
    def is_pre_norm(self) -> bool:
        """Whether norms come before attention and MLP, and one at the end; otherwise they come after the sums.

        With pre-norm, `attention_out_norm` is between attention and the sum (Gemma 2 and 3). Otherwise it follows a
        second sum with the input of the layer (the code model of JinaBERT).
        """
        return bool(self.final_norm)

    def has_attention_norm(self, number: int) -> bool:
        """Whether layer `number` has it: the input of ModernBERT's first layer has the norm of the embeddings."""
        return number > 0 or not (self.is_pre_norm and self.embedding_norm)

    def telling(self) -> Iterator[str]:
        """Yields the tensors by which these names are found in a checkpoint."""
        yield f"{self.words}.weight"
        for name in (*self.qkv, self.out, *self.gated, self.up, self.down):
            yield f"{self.layer.format(0)}{name}.weight"


# Of the flash-attention library's BERT, which jinaai/xlm-roberta-flash-implementation and NomicBERT are made of.
FLASH_NAMES = TensorNames(
    embedding_norm="emb_ln",
    layer="encoder.layers.{}.",
    qkv=("mixer.Wqkv",),
    out="mixer.out_proj",
    attention_norm="norm1",
    up="mlp.fc1",
    down="mlp.fc2",
    mlp_norm="norm2",
)


def find_names(known: Sequence[TensorNames], tensors: Container[str]) -> TensorNames:
    """Returns the names of which a checkpoint has most tensors; the first ones if several have as many."""
    return max(known, key=lambda names: sum(name in tensors for name in names.telling()))
