"""The table of model families: every row can be run, and every page belongs to a row."""

from __future__ import annotations

from importlib.util import find_spec
from unittest.mock import MagicMock

import pytest

from bei_core.engines.openvino import models
from bei_core.engines.tensorrt_llm import limits
from bei_core.engines.torch import folder
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import FAMILIES, Family, family_of
from bei_core.models.modules import Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec
from bei_core.models.transformer import num_positions

ALL = {family.name: family for family in FAMILIES.values()}


def test_a_family_has_a_name_of_its_own() -> None:
    assert {name for name, family in FAMILIES.items() if name in family.classes} == FAMILIES.keys()
    assert len(ALL) == len({id(family) for family in FAMILIES.values()})


@pytest.mark.parametrize("name", ALL)
def test_the_cpu_engine_has_the_page_of_every_family(name: str) -> None:
    assert find_spec(f"{models.__name__}.{ALL[name].page}") is not None


def test_the_engines_for_gpus_have_the_pages_of_these_families() -> None:
    without = {name for name, family in ALL.items() if not folder.has_page(family)}
    assert without == {"model2vec", "static"}


def test_tensorrt_llm_runs_these_pages_of_torch() -> None:
    assert {family.page for family in ALL.values() if limits.runs(family)} == {"bert", "decoder"}
    assert not limits.runs(ALL["mpnet"])


@pytest.mark.parametrize("name", ALL)
def test_the_mask_of_the_engines_for_gpus_is_the_familys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = next(iter(ALL[name].classes))
    if not folder.has_page(ALL[name]):
        pytest.skip("the engines for GPUs have no such page")
    for page in ("BertSizes", "DebertaSizes", "DecoderSizes", "RotarySizes"):  # no sizes are needed for the mask
        monkeypatch.setattr(folder, page, MagicMock())
    for is_causal, mask in ((True, "causal"), (False, "full")):
        monkeypatch.setattr(Family, "is_causal", MagicMock(return_value=is_causal))
        spec = ModelSpec(
            architecture=f"{family}Model",
            config={},
            modules=(Pooling((PoolingMode.MEAN,)),),
            normalize=False,
            max_seq_len=8,
        )
        assert folder.facts_of(spec).mask == mask


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
    assert family_of(architecture).page == "bert"


def test_a_class_whose_name_has_another_form_has_no_similar_families() -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        family_of("DPRQuestionEncoder")
    assert "DPRQuestionEncoder is not supported: its name has neither the form ...Model nor ...For..." in str(
        refused.value
    )
    assert "similar" not in str(refused.value)
