"""The table of model families: every row can be run, and every page belongs to a row."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from bei_core.engines.openvino.models import pages
from bei_core.engines.torch import folder
from bei_core.models.families import FAMILIES, family_of

ALL = {family.name: family for family in FAMILIES.values()}


def test_a_family_has_a_name_of_its_own() -> None:
    assert {name for name, family in FAMILIES.items() if name in family.classes} == FAMILIES.keys()
    assert len(ALL) == len({id(family) for family in FAMILIES.values()})


@pytest.mark.parametrize("name", ALL)
def test_the_cpu_engine_has_the_page_of_every_family(name: str) -> None:
    assert find_spec(f"{pages.__package__}.{ALL[name].page}") is not None


def test_the_engines_for_gpus_have_the_pages_of_these_families() -> None:
    without = {name for name, family in ALL.items() if not folder.has_page(family)}
    assert without == {"jina_bert", "model2vec", "static", "t5"}


@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaForSequenceClassification", "HF_ColBERT"])
def test_a_class_is_found_by_the_beginning_of_its_name(architecture: str) -> None:
    assert family_of(architecture).page == "bert"
