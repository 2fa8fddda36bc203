"""The pooling of a model: as its files say, and as the setting `pooling` replaces it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from bei_core.engines.openvino.pooling import POOLINGS
from bei_core.errors import ConfigError, UnsupportedModelError
from bei_core.models.modules import Pooling
from bei_core.models.pooling import PoolingMode, PoolingSetting
from tests.unit.models.test_spec import CONFIG, MEAN, modules, pooled, spec_of


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["max", "cls"]}, ("max", "cls")),
        ({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}, ("max",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, ("mean",)),
        ({}, ("mean",)),
        ({"pooling_mode": "mean", "include_prompt": True}, ("mean",)),
    ],
)
def test_both_forms_of_a_pooling_config(tmp_path: Path, config: dict[str, object], modes: tuple[str, ...]) -> None:
    spec = spec_of(tmp_path, {**modules("Pooling"), "1_Pooling/config.json": config})
    assert spec.modules == (pooled(*modes),)


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        ("cls", "cls"),
        ("last_token", "lasttoken"),
        ("last-token", "lasttoken"),
        ("weighted_mean", "weightedmean"),
        ("mean_sqrt_len", "mean_sqrt_len_tokens"),
    ],
)
def test_a_setting_replaces_the_folders_pooling_and_nothing_else(tmp_path: Path, asked: str, mode: str) -> None:
    spec = spec_of(tmp_path, {**modules("Pooling", "Normalize"), **MEAN}, pooling=asked)
    assert spec.modules == (pooled(mode),)
    assert spec.normalize


def test_a_setting_that_replaces_the_pooling_still_leaves_out_the_prompt(tmp_path: Path) -> None:
    pooling = {"1_Pooling/config.json": {"pooling_mode": "max", "include_prompt": False}}
    spec = spec_of(tmp_path, {**modules("Pooling"), **pooling}, pooling="mean")
    assert spec.modules == (Pooling((PoolingMode.MEAN,), include_prompt=False),)
    with pytest.raises(ConfigError, match="pooling cls cannot leave out the prompt"):
        spec_of(tmp_path, {**modules("Pooling"), **pooling}, pooling="cls")


def test_a_setting_for_a_model_with_a_vector_per_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pooling mean is for models with one vector per text"):
        spec_of(tmp_path, {"config.json": {**CONFIG, "architectures": ["HF_ColBERT"]}}, pooling="mean")


def test_every_mode_has_names_of_its_own_and_a_choice_of_the_setting() -> None:
    names = [name for mode in PoolingMode for name in (mode.flag, *{mode.value, mode.setting})]
    assert len(set(names)) == len(names)
    assert [mode.setting for mode in PoolingMode] == [*get_args(PoolingSetting)[:-1]]
    assert get_args(PoolingSetting)[-1] == "splade"


def test_every_engine_has_every_mode() -> None:
    assert POOLINGS.keys() == set(PoolingMode)


def test_an_unknown_pooling_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        (ConfigError, UnsupportedModelError), match="unknown pooling 'splade'; known are cls, max, mean,"
    ):
        spec_of(tmp_path, {**modules("Pooling"), "1_Pooling/config.json": {"pooling_mode": "splade"}})
    with pytest.raises(ConfigError, match="unknown pooling 'first'"):
        spec_of(tmp_path / "plain", {}, pooling="first")
