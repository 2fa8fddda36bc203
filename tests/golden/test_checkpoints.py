"""The checkpoints that tests load are the ones that the expected outputs were computed of, on every machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from tests.golden import checkpoints, weights
from tests.golden.cases import EXPECTED, GOLDEN
from tests.golden.checkpoints import Description, descriptions, digest, expand, parse, sources
from tests.golden.weights import BERT, DECODER, draw

CASES = descriptions()
DIGESTS = {
    name: facts["digest"]
    for name, facts in json.loads((EXPECTED / "index.json").read_text(encoding="utf-8")).items()
    if name != "versions"
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_checkpoint_has_the_digest_that_its_expected_outputs_belong_to(case: Description) -> None:
    content = case.content()
    assert digest(content) == DIGESTS[case.name]
    folder = GOLDEN / case.name
    written = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {path: file.read_bytes() for path, file in written.items()} == content


def test_every_expected_output_and_tokenizer_belongs_to_a_checkpoint() -> None:
    assert DIGESTS.keys() == {case.name for case in CASES}
    assert {path.name for path in checkpoints.TOKENIZERS.iterdir()} == {case.tokenizer for case in CASES}


def test_values_are_nearly_normal_and_differ_by_tensor_and_seed() -> None:
    values = draw("case", "layers.0.mlp.weight", (400, 256), DECODER)
    assert values.std() * 16 == pytest.approx(1.2, rel=0.01)  # the root of 256 inputs is 16
    assert np.abs(values).max() > 3.9 * values.std()
    assert np.mean((values / values.std()) ** 4) == pytest.approx(3, abs=0.15)
    for seed, name in (("case", "layers.1.mlp.weight"), ("other", "layers.0.mlp.weight")):
        assert abs(np.corrcoef(values.ravel(), draw(seed, name, (400, 256), DECODER).ravel())[0, 1]) < 0.02


def test_rows_after_an_activation_have_a_mean_of_zero() -> None:
    rows = draw("case", "encoder.layer.0.output.dense.weight", (32, 48), BERT)
    assert np.abs(rows.mean(axis=1)).max() < 1e-12


def test_values_are_the_known_ones() -> None:
    assert draw("case", "embed_tokens.weight", (3,), DECODER).tolist() == [
        0.4951019287109375,
        -0.3804473876953125,
        0.20782470703125,
    ]


@pytest.mark.parametrize(
    ("value", "bits"),
    [(1.0, 0x3F80), (-2.5, 0xC020), (1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82), (1 + 2**-8 + 2**-20, 0x3F81)],
)
def test_bf16_is_rounded_to_the_nearest_and_to_even(value: float, bits: int) -> None:
    assert weights.encode(np.array([value]), "BF16") == bits.to_bytes(2, "little")


def test_files_are_read_by_safetensors() -> None:
    values = np.arange(6).reshape(2, 3)
    file = weights.safetensors({name: (name, (2, 3), weights.encode(values, name)) for name in ("F32", "F16", "I64")})
    for tensor in load(file).values():
        assert np.array_equal(tensor, values)


def test_a_name_with_a_range_stands_for_the_tensors_of_these_layers() -> None:
    assert expand({"layer.{0..2}.weight": "F32[2]", "norm": "F32[1]"}) == {
        "layer.0.weight": "F32[2]",
        "layer.1.weight": "F32[2]",
        "layer.2.weight": "F32[2]",
        "norm": "F32[1]",
    }


@pytest.mark.parametrize("what", ["F32", "F64[2]", "F32[]", "F32[2,]x"])
def test_a_tensor_without_dtype_or_shape_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match="is not a dtype and a shape"):
        parse(what)


def test_folders_are_written_once_and_again_where_a_description_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MADE", tmp_path)
    monkeypatch.setattr(checkpoints, "descriptions", lambda: CASES[:1])
    folder = checkpoints.made()
    config = folder / CASES[0].name / "config.json"
    config.write_text("kept")
    assert checkpoints.made() == folder
    assert config.read_text() == "kept"
    changed = sources() | {checkpoints.WEIGHTS: b"other"}
    monkeypatch.setattr(checkpoints, "sources", lambda: changed)
    assert checkpoints.made() != folder
    assert {path.name for path in checkpoints.made().iterdir()} == {CASES[0].name}
