"""Rerankers whose scores show the types of tokens: a GTE, as written and as asked, and a RoBERTa."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.tasks import Tokens
from tests.golden.checkpoints import Description, descriptions, write

WORDS, TYPES = "new.embeddings.word_embeddings.weight", "new.embeddings.token_type_embeddings.weight"
SHIFT = 150  # the word SHIFT + i is the word i with the embedding of type 1 in place of that of type 0
IDS = np.array([5, 17, 40, 99, 2, 60, 31], np.int32)
SECOND = np.array([0, 0, 0, 0, 1, 1, 1], np.int32)


def _case(name: str) -> Description:
    return next(case for case in descriptions() if case.name == name)


def reranker(num_types: int, folder: Path) -> Checkpoint:
    """A GTE reranker whose words from SHIFT on are words of the second type."""
    case = _case("gte-multilingual-rerank")
    tensors = {name: what.replace("F16", "F32") for name, what in case.weights["model.safetensors"].items()}
    tensors[TYPES] = f"F32[{num_types},32]"
    case = replace(case, config=case.config | {"type_vocab_size": num_types}, weights={"model.safetensors": tensors})
    write(folder / "model", case.content())
    weights = load_file(folder / "model" / "model.safetensors")
    weights[WORDS][SHIFT : SHIFT + 100] = weights[WORDS][:100] + weights[TYPES][-1] - weights[TYPES][0]
    save_file(weights, folder / "model" / "model.safetensors")
    return resolve(str(folder / "model"))


def roberta(folder: Path) -> Checkpoint:
    """A RoBERTa reranker. Its table has one type, and with BERT's tokenizer (klue/roberta-base) pairs have two."""
    write(folder / "model", _case("roberta-rerank-pooler").content())
    return resolve(str(folder / "model"))


def scores(engine: Engine) -> list[float]:
    """The scores of a pair, of its tokens as one text, and of this text with the words of the second type."""
    inputs = ((IDS, SECOND), (IDS, 0 * SECOND), (IDS + SHIFT * SECOND, 0 * SECOND))
    return [float(engine.forward(Batch.pack([Tokens(ids, types)]))[0, 0]) for ids, types in inputs]
