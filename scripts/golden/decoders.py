"""Writes `tests/data/golden_decoders`: tiny decoders that embed, classify and rerank, with expectations.

`scripts/make_golden.py --group decoders` calls it.
"""

from __future__ import annotations

from pathlib import Path

from scripts.golden.decoders_classify import make_classifier
from scripts.golden.decoders_embed import make_embedder
from scripts.golden.decoders_heads import CLASSIFIERS, RERANKERS
from scripts.golden.decoders_rerank import make_reranker
from scripts.golden.decoders_table import EMBEDDERS


def make(root: Path, texts: list[str]) -> list[dict[str, object]]:
    """The lines of the index, after every case's folder is written under `root` and audited."""
    return [
        make_case(root, spec, texts, number)
        for make_case, specs in ((make_embedder, EMBEDDERS), (make_classifier, CLASSIFIERS), (make_reranker, RERANKERS))
        for number, spec in enumerate(specs)
    ]
