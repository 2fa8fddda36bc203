"""Every golden classifier and reranker, built and loaded back, against transformers' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from bei_core.tasks import EncodeOptions, Pair, Tokens
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import CLASSIFICATION_CASES, ClassificationCase
from tests.golden.engines import built
from tests.golden.tolerance import LOGITS_BF16, LOGITS_F32, compare_logits

pytestmark = pytest.mark.usefixtures("compiled_once")

MAX_ABS = {"float32": LOGITS_F32, "bfloat16": LOGITS_BF16}


@pytest.mark.parametrize("case", CLASSIFICATION_CASES, ids=str)
def test_logits_are_the_expected_ones_in_a_batch_and_alone(
    case: ClassificationCase, dtype: str, tmp_path: Path
) -> None:
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint), tmp_path / "engine", dtype=dtype).engine
    tokens = [Tokens(ids, type_ids) for ids, type_ids in zip(case.ids, case.type_ids, strict=True)]
    alone = np.concatenate([engine.forward(Batch.pack([item])) for item in tokens])
    together = engine.forward(Batch.pack(tokens))
    compare_logits(together, case.logits, MAX_ABS[dtype])
    compare_logits(alone, case.logits, MAX_ABS[dtype])
    compare_logits(together, alone, MAX_ABS[dtype])


@pytest.mark.parametrize("case", CLASSIFICATION_CASES, ids=str)
def test_texts_and_pairs_become_the_ids_of_transformers(case: ClassificationCase) -> None:
    spec = read_spec(resolve(str(case.folder)))
    tokenizer = TextTokenizer(case.folder / "tokenizer.json", max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    inputs = [Pair(*texts) if len(texts) == 2 else texts[0] for texts in case.inputs]
    tokens = tokenizer.encode_now(inputs, EncodeOptions())
    assert [item.ids.tolist() for item in tokens] == [ids.tolist() for ids in case.ids]
    assert [item.type_ids.tolist() for item in tokens] == [type_ids.tolist() for type_ids in case.type_ids]


@pytest.mark.parametrize("case", CLASSIFICATION_CASES, ids=str)
def test_labels_are_the_models_in_the_order_of_its_outputs(case: ClassificationCase) -> None:
    classifier = read_spec(resolve(str(case.folder))).classifier
    assert classifier is not None
    assert classifier.labels == case.labels
    assert case.logits.shape[1] == len(case.labels)
