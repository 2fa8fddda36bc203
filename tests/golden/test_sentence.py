"""Folders as people publish them with sentence-transformers give the ids, vectors and scores that it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened, build_engine, load
from bei_core.serving.served_model import describe
from bei_core.tasks import Classify, Embed, Pair, Rows, Text, Tokens
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.sentence import EXPECTED, PAIRS, TEXTS
from tests.golden.sentence_heads import FOLDERS
from tests.golden.tolerance import F32, compare

pytestmark = pytest.mark.usefixtures("compiled_once")

ARRAYS = load_file(EXPECTED)
NAMES = {kind: [name for name, folder in FOLDERS.items() if folder.kind == kind] for kind in ("embedding", "sparse")}
SCORED = [name for name, folder in FOLDERS.items() if folder.kind == "cross-encoder"]


class Served:
    """A folder's engine, as the server builds and calls it."""

    def __init__(self, name: str, folder: Path) -> None:
        settings = Settings.load(
            {"model_id": str(FOLDERS[name].write(folder / "model")), "dtype": "float32", "engine": "openvino"},
            {"HOME": str(folder)},
        )
        self.opened: Opened = load(build_engine(settings, folder / "engine"), "float32")
        spec = self.opened.spec
        self.tokenizer = TextTokenizer(
            self.opened.tokenizer,
            max_seq_len=spec.max_seq_len,
            vocab_size=spec.vocab_size,
            lower_case=spec.do_lower_case,
        )
        self.model = describe(self.opened, settings, self.tokenizer)

    def tokens(self, texts: Sequence[Text]) -> list[Tokens]:
        return self.tokenizer.encode_now(texts, self.model.default_options)

    def rows(self, texts: Sequence[Text]) -> Rows:
        return self.opened.engine.forward(Batch.pack(self.tokens(texts)))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    """Builds each folder's engine once."""
    return cache(lambda name: Served(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", [*NAMES["embedding"], *NAMES["sparse"]])
def test_ids_are_those_of_sentence_transformers(name: str, served: Callable[[str], Served]) -> None:
    found = served(name).tokens(TEXTS)
    assert np.concatenate([item.ids for item in found]).tolist() == ARRAYS[f"{name}:ids"].tolist()


@pytest.mark.parametrize("name", NAMES["embedding"])
def test_vectors_are_those_of_sentence_transformers(name: str, served: Callable[[str], Served]) -> None:
    model = served(name)
    rows = model.rows(TEXTS)
    vectors = Embed(TEXTS, normalize=model.opened.spec.normalize).finish(rows)
    compare(vectors, ARRAYS[f"{name}:vectors"], F32)


@pytest.mark.parametrize("name", NAMES["sparse"])
def test_terms_are_those_of_sentence_transformers(name: str, served: Callable[[str], Served]) -> None:
    rows = served(name).rows(TEXTS)
    expected = np.zeros_like(rows)
    np.put(expected, ARRAYS[f"{name}:at"], ARRAYS[f"{name}:values"])
    compare(rows, expected, F32)


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_those_of_a_cross_encoder(name: str, served: Callable[[str], Served]) -> None:
    model = served(name)
    pairs = [Pair(*pair) for pair in PAIRS]
    scores = Classify(pairs, model.model.default_options, model.model.scoring).finish(model.rows(pairs))
    assert np.abs(scores[:, 0] - ARRAYS[f"{name}:scores"]).max() < 1e-4


def test_every_folder_has_its_own_result() -> None:
    """If the files of a folder had no effect, its result would equal another folder's and prove nothing."""
    kept = [name for name in NAMES["embedding"] if name not in {"plain", "truncate-dim-too-large"}]
    results = [ARRAYS[f"{name}:vectors"].tobytes() for name in kept]
    assert len(set(results)) == len(kept)
