"""The table of model families: what the engines read of each row."""

from __future__ import annotations

import pytest

from bei_core.engines.tensorrt_llm import limits
from bei_core.engines.torch import folder
from bei_core.errors import UnsupportedModelError
from bei_core.models.class_config import as_class_reads
from bei_core.models.families import FAMILIES, Family, family_of
from bei_core.models.modules import Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec
from bei_core.models.transformer import num_positions

BIDIRECTIONAL = {"EuroBert", "LlamaBidirectional", "Qwen3Bidirectional"}
# Sizes of classes without defaults.
NEEDED = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 64},
    **{"num_key_value_heads": 8, "hidden_act": "gelu", "max_position_embeddings": 64, "vocab_size": 9},
    "relative_attention": True,
}
ALL = {family.name: family for family in FAMILIES.values()}


def test_a_family_has_a_name_of_its_own() -> None:
    assert {name for name, family in FAMILIES.items() if name in family.classes} == FAMILIES.keys()
    assert len(ALL) == len({id(family) for family in FAMILIES.values()})


def test_only_tables_of_token_vectors_have_no_transformer() -> None:
    assert {name for name, family in ALL.items() if family.is_static} == {"model2vec", "static"}


def test_tensorrt_llm_runs_the_families_of_these_layouts() -> None:
    assert {family.layout.name for family in ALL.values() if limits.runs(family)} == {"bert", "decoder"}
    assert not limits.runs(ALL["mpnet"])
    assert not limits.runs(ALL["jina_bert"])


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_the_mask_of_the_engines_for_gpus_is_the_familys(name: str, family: Family) -> None:
    if family.is_static:
        pytest.skip("the engines for GPUs do not run it")
    config = as_class_reads({"architectures": [f"{name}Model"], **NEEDED})
    if family.layout.name == "bert" and not family.layout.has_position_table(config):
        config["position_embedding_type"] = "alibi"
    spec = ModelSpec(
        architecture=f"{name}Model",
        config=config,
        modules=(Pooling((PoolingMode.MEAN,)),),
        normalize=False,
        max_seq_len=8,
    )
    facts = folder.facts_of(spec)
    is_causal = family.layout.name == "decoder" and name not in BIDIRECTIONAL
    assert (facts.mask == "causal", facts.sizes.causal) == (is_causal, is_causal)
    assert {sizes.causal for sizes in folder.attention_of(facts).values()} == {is_causal}


@pytest.mark.parametrize(
    ("architecture", "config", "num_tokens"),
    [
        ("BertModel", {}, 514),
        ("DebertaV2Model", {}, 514),
        ("UnknownModel", {}, 514),
        ("RobertaModel", {"pad_token_id": 1}, 512),
        ("CamembertForSequenceClassification", {"pad_token_id": 0}, 513),
        ("XLMRobertaFlashModel", {"pad_token_id": None}, 512),
        ("MPNetModel", {"pad_token_id": 7}, 512),
    ],
)
def test_positions_before_that_of_the_first_token_hold_no_token(
    architecture: str, config: dict[str, object], num_tokens: int
) -> None:
    assert num_positions({"architectures": [architecture], "max_position_embeddings": 514, **config}) == num_tokens


@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaForSequenceClassification", "HF_ColBERT"])
def test_a_class_is_found_by_the_beginning_of_its_name(architecture: str) -> None:
    assert family_of(architecture).layout.name == "bert"


def test_a_class_whose_name_has_another_form_has_no_similar_families() -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        family_of("DPRQuestionEncoder")
    assert "DPRQuestionEncoder is not supported: its name has neither the form ...Model nor ...For..." in str(
        refused.value
    )
    assert "similar" not in str(refused.value)
