"""The last layer is computed only for the tokens whose vectors are used, and gives the same vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.openvino import graph as graphs
from bei_core.engines.openvino.engine import OpenVinoEngine
from bei_core.engines.openvino.graph import build_graph
from bei_core.engines.openvino.models.blocks import OUTPUT_INDICES
from bei_core.engines.openvino.quantize.graph import linear_matmuls
from bei_core.models.kind import Kind
from bei_core.models.modules import Classifier, Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Tokens
from tests.golden.cases import CASES, CLASSIFICATION_CASES, GROUP_CASES, GROUP_CLASSIFICATION_CASES, OUTPUT_CASES
from tests.golden.engines import spec_of

FOLDERS = {case.folder.name: case.folder for case in (*CASES, *GROUP_CASES)}
FOLDERS |= {case.folder.name: case.folder for case in (*CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)}
FOLDERS |= {case.folder.name: case.folder for case in OUTPUT_CASES}
SPECS = {name: spec_of(folder) for name, folder in FOLDERS.items()}
ONE_TOKEN = [(PoolingMode.CLS,), (PoolingMode.LAST_TOKEN,)]
EMBEDDERS = {
    spec.architecture: name
    for name, spec in SPECS.items()
    if isinstance(first := spec.modules[0], Pooling) and first.modes in ONE_TOKEN
}


def linear_tokens(folder: Path, spec: ModelSpec) -> list[int]:
    """The number of tokens in each linear layer, in order, for 3 sequences in 2 rows of 16, without rows of tokens."""
    graph = build_graph(spec, resolve(str(folder)))
    sizes = {each.any_name: [2, 16] if each.partial_shape.rank == 2 else [3] for each in graph.inputs}
    graph.reshape(sizes | ({OUTPUT_INDICES: [0]} if OUTPUT_INDICES in sizes else {}))
    return [int(np.prod(matmul.get_output_shape(0)[:-1])) for matmul in linear_matmuls(graph)]


@pytest.mark.parametrize("name", sorted({*EMBEDDERS.values()}))
def test_after_attention_the_last_layer_has_one_token_of_each_sequence(name: str) -> None:
    numbers = [number for number in linear_tokens(FOLDERS[name], SPECS[name]) if number != 1]
    layers = numbers.index(3)
    assert {*numbers[:layers]} == {32}
    assert {*numbers[layers:]} == {3}
    assert 3 <= len(numbers) - layers <= 5  # attention's output and the MLP, and at most a projection


def test_every_model_that_pools_one_token_takes_the_indices_of_other_tokens() -> None:
    found = {
        name
        for name, spec in SPECS.items()
        if OUTPUT_INDICES in {each.any_name for each in build_graph(spec, resolve(str(FOLDERS[name]))).inputs}
    }
    modules = {name: spec.modules[0] for name, spec in SPECS.items()}
    pools = {name: first.modes for name, first in modules.items() if isinstance(first, Pooling)}
    reads = {name for name, modes in pools.items() if modes in ONE_TOKEN}
    assert found & pools.keys() == reads
    assert len(reads) > 15
    classifies = {name for name, first in modules.items() if isinstance(first, Classifier) and not first.per_token}
    assert found <= reads | classifies
    assert {SPECS[name].kind for name in found} >= {Kind.EMBEDDING, Kind.CLASSIFIER, Kind.RERANKER}
    assert classifies - found == {"llama-bidirectional-rerank", "modernbert-rerank-mean"}  # the mean of all tokens


@pytest.mark.parametrize("name", sorted({*EMBEDDERS.values()}))
def test_rows_are_the_same_with_and_without_rows_of_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, spec, random = resolve(str(FOLDERS[name])), SPECS[name], np.random.default_rng(0)
    ids = [random.integers(3, spec.vocab_size, size).astype(np.int32) for size in (1, 30, 7, 16, 24, 9, 12, 40, 3)]
    batch = Batch.pack([Tokens(each, np.zeros_like(each)) for each in ids])
    engine = OpenVinoEngine(build_graph(spec, checkpoint), spec, "f32")
    rows, tokens = engine.forward_tokens(batch)
    np.testing.assert_allclose(engine.forward(batch), rows, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(graphs, "select_before_last_layer", lambda *_: None)
    whole = OpenVinoEngine(build_graph(spec, checkpoint), spec, "f32").forward_tokens(batch)
    for found, wanted in zip((rows, tokens), whole, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
