"""The pooling of a model: as its files say, and as the setting `pooling` replaces it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import numpy as np
import openvino as ov
import pytest
from openvino import Type
from openvino import opset15 as op

from bei_core import engines
from bei_core.engines.openvino.pooling import Spans, pool
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
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": None}, ("cls",)),
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


def test_an_include_prompt_that_is_null_leaves_out_the_prompt(tmp_path: Path) -> None:
    """In sentence-transformers, too: it asks `not include_prompt`."""
    spec = spec_of(tmp_path, {**modules("Pooling"), "1_Pooling/config.json": {"include_prompt": None}})
    assert spec.modules == (Pooling((PoolingMode.MEAN,), include_prompt=False),)


def test_a_setting_for_a_model_with_a_vector_per_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pooling mean is for models with one vector per text"):
        spec_of(tmp_path, {"config.json": {**CONFIG, "architectures": ["HF_ColBERT"]}}, pooling="mean")


def test_every_mode_has_names_of_its_own_and_a_choice_of_the_setting() -> None:
    names = [name for mode in PoolingMode for name in (mode.flag, *{mode.value, mode.setting, mode.tei})]
    assert len(set(names)) == len(names)
    assert [mode.setting for mode in PoolingMode] == [*get_args(PoolingSetting)[:-1]]
    assert get_args(PoolingSetting)[-1] == "splade"


def test_several_modes_are_concatenated_in_the_order_of_sentence_transformers() -> None:
    """The order of the parts of `Pooling.forward` in sentence-transformers 5."""
    assert [*PoolingMode] == ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def pooled_rows(mode: PoolingMode, tokens: list[list[float]], begin: int) -> list[list[float]]:
    """What the CPU engine makes of one sequence of tokens from token `begin` on."""
    x = op.parameter([-1, 2], Type.f32)
    spans = Spans(op.constant([begin], Type.i32), op.constant([len(tokens) - begin], Type.i32))
    model = ov.compile_model(ov.Model([pool(mode, x, spans)], [x]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows: list[list[float]] = model(np.array(tokens, np.float32))[0].tolist()
    return rows


def of_all_tokens_but_the_prompt(mode: PoolingMode, tokens: list[list[float]], num_prompt: int) -> list[list[float]]:
    """What sentence-transformers 5 makes of them: the prompt's tokens are masked, and the others keep their places.

    Release 6 differs for CLS: it takes the first token after the prompt.
    """
    x, places = np.array(tokens, np.float32), np.arange(len(tokens))
    real = x[num_prompt:]
    match mode:
        case PoolingMode.CLS:
            row = x[0]
        case PoolingMode.MAX:
            row = real.max(axis=0)
        case PoolingMode.MEAN:
            row = real.mean(axis=0)
        case PoolingMode.MEAN_SQRT_LEN:
            row = real.sum(axis=0) / np.sqrt(len(real))
        case PoolingMode.WEIGHTED_MEAN:
            row = np.average(real, axis=0, weights=places[num_prompt:] + 1)
        case PoolingMode.LAST_TOKEN:
            row = real[-1]
    return [row.tolist()]


@pytest.mark.parametrize("mode", PoolingMode)
def test_a_mode_counts_positions_if_leaving_out_a_prompt_would_give_another_vector(mode: PoolingMode) -> None:
    tokens, num_prompt = [[1.0, -2.0], [3.0, 5.0], [-7.0, 11.0], [13.0, -17.0]], 2
    without_prompt = np.array(pooled_rows(mode, tokens, num_prompt))
    expected = np.array(of_all_tokens_but_the_prompt(mode, tokens, num_prompt))
    assert np.allclose(without_prompt, expected, rtol=1e-5) != mode.by_position


def functions_of(path: Path) -> set[str]:
    """The modes in the table `POOLINGS` of a source file, which is read but not imported: it may need torch."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.value, ast.Dict)
            and "POOLINGS" in ast.unparse(node.target)
        ):
            return {ast.unparse(key) for key in node.value.keys if key is not None}
    return set()


@pytest.mark.parametrize("file", ["openvino/pooling.py", "torch/models/pooling.py"])
def test_every_engine_has_a_function_for_every_mode(file: str) -> None:
    assert functions_of(Path(engines.__path__[0]) / file) == {f"PoolingMode.{mode.name}" for mode in PoolingMode}


def test_an_unknown_pooling_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        (ConfigError, UnsupportedModelError), match="unknown pooling 'splade'; known are cls, max, mean,"
    ):
        spec_of(tmp_path, {**modules("Pooling"), "1_Pooling/config.json": {"pooling_mode": "splade"}})
    with pytest.raises(ConfigError, match="unknown pooling 'first'"):
        spec_of(tmp_path / "plain", {}, pooling="first")
