"""Files with two matrices or biases that the class ties: the CPU engine takes the one that transformers 5 takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.engines.batch import Batch
from bei_core.engines.openvino.graph import ROWS, build_graph
from bei_core.errors import CheckpointError
from bei_core.models.spec import read_spec
from bei_core.tasks import Rows
from bei_core.text.templates import named_template
from tests.golden.test_lone import compiled, text_of
from tests.golden.tied import CASES, Tied, changed, with_both

MATRICES = [case for case in CASES if case.name.startswith("splade") and case.target.endswith("weight")]
OTHERS = [case for case in CASES if case not in MATRICES]


def rows(checkpoint: Checkpoint, name: str) -> Rows:
    spec = read_spec(checkpoint, pooling="splade" if name.startswith("splade") else None)
    batch = Batch.pack([text_of(size, spec.vocab_size) for size in (7, 12)])
    return compiled(build_graph(spec, checkpoint)).infer(batch, ROWS).rows


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.name}-{case.target}")
def test_a_file_with_both_gives_what_it_gives_without_the_other_one(case: Tied, tmp_path: Path) -> None:
    both = rows(with_both(case, tmp_path / "both"), case.name)
    one = shutil.copytree(tmp_path / "both", tmp_path / "one") / "model.safetensors"
    save_file({name: value for name, value in load_file(one).items() if name != case.source}, one)
    np.testing.assert_array_equal(rows(resolve(str(one.parent)), case.name), both)


@pytest.mark.parametrize("case", MATRICES, ids=lambda case: f"{case.name}-{case.target}")
def test_a_file_with_a_matrix_for_the_head_gives_what_it_gives_untied(case: Tied, tmp_path: Path) -> None:
    both = rows(with_both(case, tmp_path / "both"), case.name)
    path = tmp_path / "both" / "config.json"
    path.write_text(path.read_text().replace("{", '{"tie_word_embeddings": false,', 1))
    np.testing.assert_array_equal(rows(resolve(str(path.parent)), case.name), both)
    assert np.abs(rows(changed(case.name, tmp_path / "tied"), case.name) - both).max() > 0.1


def test_an_untied_model_without_the_matrix_of_its_head_is_refused(tmp_path: Path) -> None:
    """transformers would give it random values."""
    sparse = changed("splade-bert", tmp_path / "sparse", tie_word_embeddings=False)
    with pytest.raises(
        CheckpointError, match=r"no tensor cls\.predictions\.decoder\.weight, and tie_word_embeddings is f"
    ):
        rows(sparse, "splade-bert")
    untied = changed("qwen3-yes-no-tied", tmp_path / "untied", tie_word_embeddings=False)
    by_default = changed("qwen3-yes-no-tied", tmp_path / "default", without="tie_word_embeddings")
    for checkpoint in (untied, by_default):
        with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight, and tie_word_embeddings is false"):
            build_graph(read_spec(checkpoint, template=named_template("qwen3-reranker")), checkpoint)
