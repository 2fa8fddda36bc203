"""Writes packages/bei_core/bench/texts.txt: the prose of Python's own documentation, one paragraph a line.

    python3.13 benchmarks/texts/extract.py

Run once, with Python 3.13.0, so that the workloads are the same on every version of Python: the documentation that
ships with each (`pydoc_data.topics`) differs. The licence of the text is the PSF's, in texts.LICENSE beside it.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

TARGET = Path(__file__).parents[2] / "packages" / "bei_core" / "bench" / "texts.txt"
MAX_BYTES = 280_000
CODE = re.compile(r"::=|>>>|^\.\.\.|[{}\\|]|__\w+__\(|\s{2,}", re.MULTILINE)


def paragraphs(topic: str) -> list[str]:
    """The paragraphs of one topic that are prose: sentences, no code, no grammar, no table."""
    found = []
    for block in re.split(r"\n\s*\n", topic):
        text = re.sub(
            r"^(\* |\d+\. |Note:|Changed in version \S+:|New in version \S+:)\s*", "", textwrap.dedent(block).strip()
        )
        text = re.sub(r"\*(\w[^*]*)\*", r"\1", text).replace("\n", " ").replace('"', "")
        text = re.sub(r" +", " ", text)
        if is_prose(text):
            found.append(text)
    return found


def is_prose(text: str) -> bool:
    """Whether `text` reads as sentences."""
    letters = sum(c.isalpha() or c == " " for c in text)
    return (
        text[:1].isupper()
        and text[-1:] == "."
        and len(text.split()) >= 8
        and letters > 0.92 * len(text)
        and not CODE.search(text)
    )


def main() -> None:
    """Writes the file, and what it holds to stderr."""
    lines = [text for name in sorted(topics) for text in paragraphs(topics[name])]
    unique = list(dict.fromkeys(lines))
    body = "\n".join(unique) + "\n"
    TARGET.write_text(body, encoding="utf-8")
    print(len(unique), "paragraphs", len(body.encode()), "bytes", len(body.split()), "words", file=sys.stderr)


if __name__ == "__main__":
    main()
