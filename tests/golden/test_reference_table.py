"""Every row of the table of models in Baseten's page on BEI: a small copy of the repository against transformers.

A copy has the repository's own config.json but for sizes and the ids of tokens, its modules, its names of tensors and
its dtype (`tests/data/checkpoints/reference`, which also says how far each config.json is confirmed).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.tasks import Embed, EncodeOptions, Pair, Rows, Text, Tokens
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import Case, ClassificationCase, load_cases, load_classification_cases
from tests.golden.checkpoints import CHECKPOINTS
from tests.golden.engines import built
from tests.golden.tolerance import BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, check_order, compare, compare_logits

pytestmark = pytest.mark.usefixtures("compiled_once")

PUBLISHED = CHECKPOINTS / "reference"
# The names in the table, and in its links where the two differ.
REPOSITORIES = (
    "Salesforce/SFR-Embedding-Mistral",
    "BAAI/bge-m3",
    "BAAI/bge-multilingual-gemma2",
    "mixedbread-ai/mxbai-embed-large-v1",
    "BAAI/bge-large-en-v1.5",
    "allenai/Llama-3.1-Tulu-3-8B-RM",
    "ncbi/MedCPT-Cross-Encoder",
    "SamLowe/roberta-base-go_emotions",
    "michaelfeil/mxbai-rerank-large-v2-seq",
    "BAAI/bge-en-icl",
    "BAAI/bge-reranker-v2-m3",
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2",
    "Snowflake/snowflake-arctic-embed-l",
    "nomic-ai/nomic-embed-code",
)
EVERY: list[Case | ClassificationCase] = [*load_cases("reference"), *load_classification_cases("reference")]
CASES = {case.name: case for case in EVERY}
TOLERANCES = {"float32": F32, "bfloat16": BF16_WIDE}
MARGINS = {"float32": 1e-4, "bfloat16": 0.05}  # of cosines that have an order
MAX_ABS = {"float32": LOGITS_F32, "bfloat16": LOGITS_BF16}
SIZES = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "sliding_window_size",
    "original_max_position_embeddings",
}


def inputs_of(case: Case | ClassificationCase) -> list[Text]:
    """The texts as a client sends them: for a reward model and mxbai's reranker a prompt, not a pair."""
    if isinstance(case, Case):
        return list(case.texts)
    if case.template:
        return [case.template.format(query=query, document=document) for query, document in case.inputs]
    return [Pair(*item) if len(item) == 2 else item[0] for item in case.inputs]


def tokens_of(case: Case | ClassificationCase, spec: ModelSpec) -> list[Tokens]:
    tokenizer = TextTokenizer(
        case.folder / "tokenizer.json",
        max_seq_len=spec.max_seq_len,
        vocab_size=spec.vocab_size,
        lower_case=spec.do_lower_case,
    )
    try:
        return tokenizer.encode_now(inputs_of(case), EncodeOptions())
    finally:
        tokenizer.close()


def check_ranks(actual: Rows, expected: Rows, least: float) -> None:
    """Inputs whose expected scores differ by more than `least` are ranked as expected, label by label."""
    for ranked, wanted in zip(actual.T, expected.T, strict=True):
        clear = wanted[:, None] - wanted[None, :] > least
        assert clear.any()
        assert (ranked[:, None] - ranked[None, :])[clear].min() > 0


def check_vectors(case: Case, engine: Engine, spec: ModelSpec, tokens: list[Tokens], dtype: str) -> None:
    together = engine.forward(Batch.pack(tokens))
    alone = np.concatenate([engine.forward(Batch.pack([item])) for item in tokens])
    compare(together, case.raw, TOLERANCES[dtype])
    compare(alone, case.raw, TOLERANCES[dtype])
    compare(together, alone, TOLERANCES[dtype])
    assert check_order(together, case.raw, MARGINS[dtype]) > 100
    compare(Embed(case.texts, normalize=spec.normalize).finish(together), case.vectors, TOLERANCES[dtype])
    assert (engine.info.row_width, engine.info.max_seq_len) == (case.dimension, case.max_seq_length)


def check_logits(case: ClassificationCase, engine: Engine, spec: ModelSpec, tokens: list[Tokens], dtype: str) -> None:
    assert [item.type_ids.tolist() for item in tokens] == [type_ids.tolist() for type_ids in case.type_ids]
    assert spec.classifier is not None
    assert spec.classifier.labels == case.labels
    together = engine.forward(Batch.pack(tokens))
    alone = np.concatenate([engine.forward(Batch.pack([item])) for item in tokens])
    compare_logits(together, case.logits, MAX_ABS[dtype])
    compare_logits(alone, case.logits, MAX_ABS[dtype])
    compare_logits(together, alone, MAX_ABS[dtype])
    check_ranks(together, case.logits, MAX_ABS[dtype])


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_row(repository: str, dtype: str, tmp_path: Path) -> None:
    case = CASES[repository]
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    tokens = tokens_of(case, spec)
    assert [item.ids.tolist() for item in tokens] == [ids.tolist() for ids in case.ids]
    engine = built(checkpoint, spec, tmp_path / "engine", dtype=dtype).engine
    if isinstance(case, Case):
        check_vectors(case, engine, spec, tokens, dtype)
    else:
        check_logits(case, engine, spec, tokens, dtype)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_row_has_the_published_configuration_but_for_sizes(repository: str) -> None:
    path = PUBLISHED / f"{repository.replace('/', '--')}.json"
    published = json.loads(path.read_text(encoding="utf-8"))["config"]
    small = json.loads((CASES[repository].folder / "config.json").read_text(encoding="utf-8"))
    assert small.keys() == published.keys()
    assert without_sizes(small) == without_sizes(published)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_row_has_inputs_that_are_cut(repository: str) -> None:
    case = CASES[repository]
    assert max(map(len, case.ids)) == case.max_seq_length > min(map(len, case.ids))


def without_sizes(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in SIZES and not key.endswith("_token_id")}
    return {key: without_sizes(value) if isinstance(value, dict) else value for key, value in kept.items()}
