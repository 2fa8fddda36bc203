"""The two linear layers of bge-m3, which FlagEmbedding reads beside the files of transformers."""

from __future__ import annotations

from collections.abc import Sequence

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import COLBERT_LINEAR, SPARSE_LINEAR
from bei_core.models.modules import BgeM3, Module, Pooling
from bei_core.text.published import special_token_ids

# FlagEmbedding gives these no weight (`inference/embedder/encoder_only/m3.py`).
_UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")


def read_bge_m3(checkpoint: Checkpoint, modules: Sequence[Module]) -> BgeM3 | None:
    """What the layers need to be known of them; None of a folder that lacks one, or of a model that does not pool."""
    has_layers = all((checkpoint.folder / name).is_file() for name in (SPARSE_LINEAR, COLBERT_LINEAR))
    if not has_layers or not isinstance(modules[0], Pooling):
        return None
    ids = special_token_ids(checkpoint.folder / checkpoint.first_module)
    return BgeM3(tuple(sorted({ids[name] for name in _UNWEIGHTED if name in ids})))
