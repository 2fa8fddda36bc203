"""How well the cosines of each precision follow the judgements of people, on pairs of texts.

Prints Spearman's rank correlation (x 100) of f32, bf16 and int8, and writes it to results/labelled.{md,json}.

    labelled.py                   the pairs in gensim's wheel, which pip downloads
    labelled.py sts/*.tsv         files of lines with a judgement and two texts, separated by tabs

The wheel has 50 news articles, with a judgement of each two of them (Lee, Pincombe and Welsh 2005), and pairs of words:
WordSim-353 (Finkelstein et al. 2002) and SimLex-999 (Hill, Reichart and Korhonen 2015). STS Benchmark and the tasks of
SemEval can be had as files of the second form.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from bei_core.config.settings import Settings
from bei_core.engines.calibration import calibration_batches, outputs
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import build_engine, load
from bei_core.engines.quality import cosines_of, rank_correlation
from bei_core.tasks import EncodeOptions
from bei_core.text.tokenizer import TextTokenizer
from benchmarks.int8 import facts_of

RESULTS = Path(__file__).parent / "results"
_MODEL = ".models/all-MiniLM-L6-v2"
_WHEEL = "gensim==4.4.0"
_DATA = "gensim/test/test_data"
_DOWNLOADS = Path("build/labelled")
Dtype = Literal["float32", "bfloat16", "int8"]
_DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "int8")

Pair = tuple[float, str, str]  # the judgement, which is higher for more similar texts


class Line(NamedTuple):
    """The rank correlation of each precision on one set of pairs, times 100."""

    name: str
    num_pairs: int
    by_dtype: dict[str, float]


def pairs_of_lines(lines: Iterable[str], *, judgement_first: bool) -> list[Pair]:
    """The pairs of lines separated by tabs; comments and lines without a judgement are left out."""
    rows = [line.rstrip("\n").split("\t") for line in lines if not line.startswith("#")]
    if not judgement_first:
        rows = [[row[2], *row[:2]] for row in rows if len(row) >= 3]
    return [(float(row[0]), row[1], row[2]) for row in rows if len(row) >= 3 and row[0]]


def packaged() -> dict[str, list[Pair]]:
    """The pairs in the wheel, which is downloaded if it is not here yet."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(_DOWNLOADS), _WHEEL]
    if not list(_DOWNLOADS.glob("*.whl")):
        subprocess.run(command, check=True)
    with ZipFile(next(_DOWNLOADS.glob("*.whl"))) as wheel:
        files = {
            name: wheel.read(f"{_DATA}/{name}").decode("latin-1")
            for name in ("lee.cor", "similarities0-1.txt", "wordsim353.tsv", "simlex999.txt")
        }
    articles, judged = files["lee.cor"].splitlines(), np.loadtxt(io.StringIO(files["similarities0-1.txt"]))
    return {
        "news articles": [(judged[i, j], articles[i], articles[j]) for i, j in combinations(range(len(articles)), 2)],
        "WordSim-353": pairs_of_lines(files["wordsim353.tsv"].splitlines(), judgement_first=False),
        "SimLex-999": pairs_of_lines(files["simlex999.txt"].splitlines(), judgement_first=False),
    }


def vectors(model: str, dtype: Dtype, texts: Sequence[str]) -> tuple[dict[str, npt.NDArray[np.float32]], Manifest]:
    """The vector of each text, and the manifest of the engine."""
    opened = load(build_engine(Settings(model_id=model, dtype=dtype)), dtype)
    spec = opened.spec
    tokenizer = TextTokenizer(opened.tokenizer, max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    batches = calibration_batches(tokenizer.encode_now(texts, EncodeOptions()))
    rows = outputs(opened.engine, batches)
    return dict(zip(texts, rows, strict=True)), opened.manifest


def correlation(pairs: Sequence[Pair], rows: dict[str, npt.NDArray[np.float32]]) -> float:
    """Spearman's of the judgements and the cosines, times 100."""
    judgements = np.array([[pair[0]] for pair in pairs])
    cosines = cosines_of(np.array([rows[pair[1]] for pair in pairs]), np.array([rows[pair[2]] for pair in pairs]))
    return 100 * rank_correlation(judgements, cosines[:, None])


def table(lines: Sequence[Line], facts: dict[str, object]) -> str:
    """The results as Markdown."""
    about = "; ".join(f"{name} {value}" for name, value in facts.items())
    head = ["| pairs | number | f32 | bf16 | int8 |", "|---|--:|--:|--:|--:|"]
    rows = [
        f"| {line.name} | {line.num_pairs:,} | {' | '.join(f'{line.by_dtype[dtype]:.2f}' for dtype in _DTYPES)} |"
        for line in lines
    ]
    note = "Made by benchmarks/labelled.py: Spearman's rank correlation of cosines and judgements, times 100.\n"
    return "\n".join([note, f"{about}.\n", *head, *rows, ""])


def main() -> None:
    """Embeds all texts with each precision, and writes the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default=_MODEL)
    options = parser.parse_args()
    sets = packaged()
    for path in options.files:
        sets[path.stem] = pairs_of_lines(path.read_text(encoding="utf-8").splitlines(), judgement_first=True)
    texts = list(dict.fromkeys(text for pairs in sets.values() for pair in pairs for text in pair[1:]))
    by_dtype = {dtype: vectors(options.model, dtype, texts) for dtype in _DTYPES}
    lines = [
        Line(name, len(pairs), {dtype: correlation(pairs, rows) for dtype, (rows, _) in by_dtype.items()})
        for name, pairs in sets.items()
    ]
    facts = {"model": Path(options.model).name, **facts_of(by_dtype["int8"][1])}
    print(table(lines, facts))
    (RESULTS / "labelled.md").write_text(table(lines, facts))
    found = {"facts": facts, "lines": [line._asdict() for line in lines]}
    (RESULTS / "labelled.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
