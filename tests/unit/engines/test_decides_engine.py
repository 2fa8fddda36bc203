"""A setting that decides which engine is built changes the key by which a built engine is found again."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from bei_core import engines
from bei_core.config.settings import SETTINGS, Settings
from bei_core.engines.provider import EngineProvider
from bei_core.engines.quality import Bar

# Every setting that decides the engine, with another value than the default, and the settings that it needs.
DECIDES: dict[str, dict[str, Any]] = {
    "model_id": {"model_id": "other/model"},
    "revision": {"revision": "v2"},
    "pooling": {"pooling": "cls"},
    "rerank_template": {"rerank_template": "none"},
    "dtype": {"dtype": "int8"},
    "quantization_type": {"quantization_type": "fp8"},
    "smooth_quant_alpha": {"quantization_type": "fp8", "smooth_quant_alpha": 0.25},
    "calib_dataset": {"quantization_type": "fp8", "calib_dataset": "other/texts"},
    "calib_size": {"quantization_type": "fp8", "calib_size": 77},
    "calib_max_seq_length": {"quantization_type": "fp8", "calib_max_seq_length": 99},
}
# Settings that a build reads, and that do not decide what it builds: where files come from, warnings, refusals.
HARMLESS = {"cache_dir", "hf_token", "checkpoint_secret", "huggingface_hub_cache", "trt_llm"}


def key_of(**changed: Any) -> str:  # noqa: ANN401 - as Settings takes them
    provider = EngineProvider(Settings(**{"model_id": "owner/model", "engine": "openvino", **changed}))
    (key,) = provider._request_keys()
    return key


def settings_read(path: Path) -> set[str]:
    """The names `x` of every `settings.x` in a source file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "settings"}


@pytest.mark.parametrize("name", DECIDES)
def test_a_setting_that_decides_the_engine_is_part_of_its_key(name: str) -> None:
    others = {other: value for other, value in DECIDES[name].items() if other != name}
    assert key_of(**DECIDES[name]) != key_of(**others)


def test_every_other_setting_leaves_the_key_as_it_is() -> None:
    assert {name for name, setting in SETTINGS.items() if setting.about.decides_engine} <= DECIDES.keys()
    assert key_of(hf_token="t", auto_truncate=False, port=1, max_batch_tokens=512, served_model_name="m") == key_of()


def test_every_setting_that_a_build_reads_is_known_to_decide_the_engine_or_not_to() -> None:
    folder = Path(engines.__path__[0])
    read = set[str]().union(
        *map(settings_read, [*folder.glob("*/build.py"), folder / "build.py", folder / "calibration.py"])
    )
    assert read == DECIDES.keys() | HARMLESS, "is the new setting in the key (About(decides_engine=True))?"
    assert {f"quality_{name}" for name in Bar.__struct_fields__} < SETTINGS.keys()  # they refuse an engine
