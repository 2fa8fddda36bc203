"""Texts that contain the padding token, on the CPU engine: in a batch, alone, and in a graph for lone texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.openvino.graph import ROWS, build_graph
from bei_core.engines.openvino.lone import with_lone_graphs
from bei_core.models.spec import read_spec
from tests.golden.cases import GOLDEN
from tests.golden.padding import PADDING_IDS, moved, text, tokens, without_padding
from tests.golden.test_lone import compiled, text_of


@pytest.mark.parametrize("name", PADDING_IDS)
def test_a_padding_token_in_a_text_has_no_position_and_the_next_token_the_next_one(name: str, tmp_path: Path) -> None:
    ids = text(PADDING_IDS[name])
    other = moved(name, tmp_path / "moved")
    plain = tokens(without_padding(ids, PADDING_IDS[name]))
    expected = compiled(build_graph(read_spec(other), other)).infer(Batch.pack([plain]), ROWS).rows[0]

    checkpoint = resolve(str(GOLDEN / name))
    spec = read_spec(checkpoint)
    graph = build_graph(spec, checkpoint)
    engine = compiled(with_lone_graphs(graph, ROWS, (8, 24)), (8, 24))
    around = [text_of(size, spec.vocab_size) for size in (5, 20)]
    alone = [engine.infer(Batch.pack([each]), ROWS).rows[0] for each in (around[0], tokens(ids), around[1])]
    together = engine.infer(Batch.pack([around[0], tokens(ids), around[1], tokens(ids)]), ROWS).rows
    np.testing.assert_allclose(alone[1], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[:3], alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[3], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        compiled(graph).infer(Batch.pack([tokens(ids)]), ROWS).rows[0], expected, rtol=1e-4, atol=1e-5
    )
