"""Writes `tests/data/golden_encoders`: tiny encoders of later families and other heads, and what they give.

`python -m scripts.golden.encoders` in the environment of requirements/golden.txt. It is as deterministic as
scripts/make_golden.py, whose other cases these belong to.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # type: ignore[import-not-found]
from transformers.utils import logging as transformers_logging  # type: ignore[import-not-found]

from scripts.golden.encoders_classify import make_classifier
from scripts.golden.encoders_embed import make_embedder
from scripts.golden.encoders_heads import CLASSIFIERS, LATE, SPARSE, TOKEN_CLASSIFIERS
from scripts.golden.encoders_outputs import LATE_INTERACTION, SPLADE, TOKEN_CLASSIFICATION, make_outputs
from scripts.golden.encoders_table import EMBEDDERS
from tests.golden.texts import mixed_texts

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden_encoders"


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


def main() -> None:
    """Nothing; raises if the goldens that were written would not catch mistakes."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    lines = make(FOLDER, mixed_texts())
    cases = ",\n".join("    " + json.dumps(line, ensure_ascii=False) for line in lines)
    (FOLDER / "index.json").write_text(f'{{\n  "cases": [\n{cases}\n  ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
