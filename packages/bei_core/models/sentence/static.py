"""Static embeddings: the mean of a table's rows for the tokens of a text (StaticEmbedding, model2vec).

The folder has model.safetensors and tokenizer.json; a config.json of model2vec says nothing more. The table is
`embedding.weight`, or model2vec's `embeddings` with an optional row number (`mapping`) and factor (`weights`) for each
token.
"""

from __future__ import annotations

from typing import Any

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError
from bei_core.models.families import FAMILIES

# The tensor with the table, by the name that stands for a class in config.json.
STATIC_TABLES = {name: family.anchor for name, family in FAMILIES.items() if family.page == "static"}

# sentence-transformers has no limit on the length of a text; the memory of a batch needs one.
MAX_LENGTH = 1 << 15


def static_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What config.json would say: architecture, number of token ids, width. Raises CheckpointError without a table."""
    tensors = checkpoint.tensors()
    for architecture, name in STATIC_TABLES.items():
        if name in tensors:
            rows, *width = tensors[name].shape
            if len(width) != 1:
                raise CheckpointError(f"{checkpoint.source}: {name} has the shape {tensors[name].shape}, not a table's")
            count = len(tensors["mapping"]) if "mapping" in tensors else rows
            return {"architectures": [architecture], "vocab_size": count, "hidden_size": width[0]}
    raise CheckpointError(f"{checkpoint.source} has none of the tensors {', '.join(STATIC_TABLES.values())}")


def static_length(checkpoint: Checkpoint) -> int:
    """The limit on a text's tokens: that of tokenizer.json, if it has one."""
    truncation = checkpoint.read_json(checkpoint.in_first_module("tokenizer.json")).get("truncation") or {}
    return min(int(truncation.get("max_length", MAX_LENGTH)), MAX_LENGTH)
