"""Hypothesis strategies: lengths of sequences, token sequences, batches."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from bei_core.engines.batch import Batch
from bei_core.tasks import Tokens

# Lengths around the limits of length classes and packed rows, and around the steps of row lengths.
EDGES = (1, 2, 15, 16, 17, 64, 127, 128, 129, 255, 256, 257, 511, 512)


def lengths(max_len: int = 512) -> st.SearchStrategy[int]:
    """Number of tokens of a sequence: mostly small, sometimes at a limit."""
    edges = [edge for edge in EDGES if edge <= max_len]
    return st.one_of(st.integers(1, min(40, max_len)), st.sampled_from(edges), st.integers(1, max_len))


@st.composite
def token_sequences(draw: st.DrawFn, *, max_len: int = 512, vocab_size: int = 1000) -> Tokens:
    """The tokens of a sequence. Only length and seed are drawn: to draw each id is slow and does not shrink better."""
    length, seed = draw(lengths(max_len)), draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    ids = random.integers(0, vocab_size, length, dtype=np.int32)
    return Tokens(ids, random.integers(0, 2, length, dtype=np.int32))


def batches(*, max_items: int = 40, max_len: int = 512) -> st.SearchStrategy[Batch]:
    """Batches for an engine."""
    return st.lists(token_sequences(max_len=max_len), min_size=1, max_size=max_items).map(Batch.pack)
