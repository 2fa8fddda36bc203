"""The 200 texts that goldens are made from: one character to over 500 tokens, 27 languages, code, and oddities.

They are written by hand in `tests/data/texts/mixed.jsonl`, which is where they are edited; what does not print stands
there as an escape, so that no editor or line splitter can lose it.
"""

from __future__ import annotations

import json
from pathlib import Path

TEXTS_FILE = Path(__file__).resolve().parents[1] / "data" / "texts" / "mixed.jsonl"


def mixed_texts() -> list[str]:
    """The texts, in the order of the file; goldens refer to them by that position."""
    with TEXTS_FILE.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line)["text"] for line in lines]
