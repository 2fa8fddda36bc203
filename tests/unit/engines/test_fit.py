"""An engine folder and the settings with which it is served."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bei_core.config.settings import Settings
from bei_core.engines.fit import check_folder
from bei_core.engines.manifest import Manifest
from bei_core.engines.quality import Quality
from bei_core.models.kind import Kind

MEASURED = Quality(kind=Kind.EMBEDDING, num_rows=9, mean_cosine=1, min_cosine=1, max_abs=0, norm_ratio=1)
FOLDER = Path("engine")


def warnings_of(settings: Settings, precision: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    quality = None if precision == "f32" else MEASURED
    manifest = Manifest(
        engine="openvino", precision=precision, source="owner/name", revision="0", artifact="a" * 32, quality=quality
    )
    with caplog.at_level(logging.WARNING):
        check_folder(settings, FOLDER, manifest)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("precision", ["int8", "int8_weight_only", "int4_weight_only"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_folder_says_that_another_dtype_is_not_that_of_its_weights(
    precision: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(Settings.load({"dtype": dtype}, {}), precision, caplog) == [
        f"engine has weights in {precision}, whatever dtype is: {dtype} is only the type of what is not quantised. For "
        f"a model in {dtype} build it again with quantization_type no_quant"
    ]


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        (Settings(dtype="float32"), "f32"),
        (Settings(), "int8"),
        (Settings(dtype="int8"), "int8"),
        (Settings(dtype="float32", quantization_type="fp8"), "int8"),
    ],
)
def test_a_folder_with_what_the_settings_ask_for_says_nothing(
    settings: Settings, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(settings, precision, caplog) == []
