"""Rerankers with a chat template, in the form in which they are published, give the ids and scores of CrossEncoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened, build_engine, load
from bei_core.serving.served_model import ServedModel, describe
from bei_core.tasks import Classify, Text
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.chat_templates import EXPECTED, FOLDERS, INSTRUCTION, PAIRS

pytestmark = pytest.mark.usefixtures("compiled_once")

ARRAYS = load_file(EXPECTED)


class Served:
    """A folder's engine, as the server builds and calls it without any setting."""

    def __init__(self, name: str, folder: Path) -> None:
        model = FOLDERS[name].write(folder / "model")
        settings = Settings.load({"model_id": str(model), "dtype": "float32", "engine": "openvino"}, {})
        self.opened: Opened = load(build_engine(settings, folder / "engine"), "float32")
        spec = self.opened.spec
        self.tokenizer = TextTokenizer(self.opened.tokenizer, max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
        self.model: ServedModel = describe(self.opened, settings, self.tokenizer)

    def inputs(self, key: str) -> list[Text]:
        return self.model.pairs(PAIRS, INSTRUCTION if key == "asked" else None)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    """Builds each folder's engine once."""
    return cache(lambda name: Served(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("key", ["plain", "asked"])
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_scores_are_those_of_a_cross_encoder(name: str, key: str, served: Callable[[str], Served]) -> None:
    model = served(name)
    inputs, options = model.inputs(key), model.model.default_options
    tokens = model.tokenizer.encode_now(inputs, options)
    assert np.concatenate([each.ids for each in tokens]).tolist() == ARRAYS[f"{name}:{key}:ids"].tolist()
    scores = Classify(inputs, options, model.model.scoring).finish(model.opened.engine.forward(Batch.pack(tokens)))
    assert np.abs(scores[:, 0] - ARRAYS[f"{name}:{key}:scores"]).max() < 2e-4


def test_each_folder_that_differs_in_more_than_a_file_has_its_own_result() -> None:
    """If a file had no effect, its folder's result would equal another folder's and prove nothing."""
    kept = FOLDERS.keys() - {"file-before-the-config"}
    assert len({ARRAYS[f"{name}:plain:scores"].tobytes() for name in kept}) == len(kept)
