"""Reads static embeddings (StaticEmbedding, model2vec): a text's vector is the mean of its tokens' rows in a table.

The folder has model.safetensors and tokenizer.json; BEI does not need the config.json of model2vec. The table is the
tensor `embedding.weight`, or model2vec's `embeddings`, which may have a row number (`mapping`) and a factor (`weights`)
for each token id.
"""

from __future__ import annotations

from typing import Any

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError
from bei_core.models.families import FAMILIES

# The name of the table's tensor, by the architecture.
STATIC_TABLES = {name: family.anchor for name, family in FAMILIES.items() if family.is_static}

# The most tokens of a text. sentence-transformers has no limit, but the memory for a batch must have one.
MAX_LENGTH = 1 << 15


def static_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns a config.json: architecture, number of token ids, width. Raises CheckpointError if there is no table."""
    tensors = checkpoint.tensors()
    for architecture, name in STATIC_TABLES.items():
        if name in tensors:
            rows, *width = tensors[name].shape
            if len(width) != 1:
                raise CheckpointError(
                    f"{checkpoint.source}: {name} has shape {tensors[name].shape}, but must have 2 dimensions"
                )
            count = len(tensors["mapping"]) if "mapping" in tensors else rows
            return {"architectures": [architecture], "vocab_size": count, "hidden_size": width[0]}
    raise CheckpointError(f"{checkpoint.source} has none of the tensors {', '.join(STATIC_TABLES.values())}")


def static_length(checkpoint: Checkpoint) -> int:
    """Returns the most tokens of a text: the limit in tokenizer.json, at most `MAX_LENGTH`."""
    truncation = checkpoint.read_json(checkpoint.in_first_module("tokenizer.json")).get("truncation") or {}
    return min(int(truncation.get("max_length", MAX_LENGTH)), MAX_LENGTH)
