"""Writes `tests/data/golden_encoders`: tiny encoders of later families and other heads, and what they give.

`scripts/make_golden.py --group encoders` calls it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from scripts.golden.encoders_classify import make_classifier
from scripts.golden.encoders_embed import make_embedder
from scripts.golden.encoders_heads import CLASSIFIERS, TOKEN_CLASSIFIERS
from scripts.golden.encoders_outputs import LATE_INTERACTION, SPLADE, TOKEN_CLASSIFICATION, make_outputs
from scripts.golden.encoders_table import EMBEDDERS
from scripts.golden.encoders_terms import LATE, SPARSE


def make(root: Path, texts: list[str]) -> list[dict[str, object]]:
    """The lines of the index, after every case's folder is written under `root` and audited."""
    shutil.rmtree(root, ignore_errors=True)
    lines = [
        make_case(root, spec, texts, number)
        for make_case, specs in ((make_embedder, EMBEDDERS), (make_classifier, CLASSIFIERS))
        for number, spec in enumerate(specs)
    ]
    return lines + [
        make_outputs(root, spec, texts, number, kind)
        for kind, specs in ((TOKEN_CLASSIFICATION, TOKEN_CLASSIFIERS), (SPLADE, SPARSE), (LATE_INTERACTION, LATE))
        for number, spec in enumerate(specs)
    ]
