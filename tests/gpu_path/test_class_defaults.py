"""The table of defaults of transformers' classes has those of the installed transformers."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from bei_core.models.class_defaults import CLASS_DEFAULTS
from bei_core.models.configuration import Config

TYPES = {
    "HF_ColBERT": "bert",
    "Contriever": "bert",
    "XLMRoberta": "xlm-roberta",
    "DebertaV2": "deberta-v2",
    "T5Encoder": "t5",
    "MT5Encoder": "mt5",
    "Gemma3": "gemma3_text",
    "Qwen3Bidirectional": "qwen3",
    "NomicBert": "nomic_bert",
    "JinaEmbeddingsV3": "jina_embeddings_v3",
}
# Names of before transformers 5, under which published files have the theta of each type of layers.
THETAS = {
    "rope_theta": "full_attention",
    "global_rope_theta": "full_attention",
    "rotary_emb_base": "full_attention",
    "local_rope_theta": "sliding_attention",
    "rope_local_base_freq": "sliding_attention",
}
UNKNOWN_HERE = {"Gte"}  # transformers has it since 5.6


def value(config: object, key: str) -> object:
    if key not in THETAS:
        return getattr(config, key)
    parameters: Config = config.rope_parameters  # type: ignore[attr-defined]
    return parameters.get(THETAS[key], parameters)["rope_theta"]


@pytest.mark.parametrize("name", sorted(CLASS_DEFAULTS.keys() - UNKNOWN_HERE))
def test_defaults_are_those_of_the_class(name: str) -> None:
    config = AutoConfig.for_model(TYPES.get(name, name.lower()), use_sliding_window=True)  # Qwen has no window without
    defaults = CLASS_DEFAULTS[name]
    assert {key: value(config, key) for key in defaults} == defaults
