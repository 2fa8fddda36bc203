"""Calibration and held-out texts: two parts of a data set, the same in every run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.calibration import (
    HUB_DEFAULT,
    WEIGHT_ONLY,
    Calibration,
    Samples,
    encode,
    first_inputs,
    quantization_of,
    read_samples,
    with_progress,
)
from bei_core.errors import ConfigError
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.tasks import Pair, Templated, Tokens
from bei_core.text.templates import named_template
from tests.golden.cases import GOLDEN


def spec_of(name: str) -> ModelSpec:
    return read_spec(resolve(str(GOLDEN / name)))


@pytest.fixture(scope="module")
def embedder() -> ModelSpec:
    return spec_of("bert-cls-normalize")


def test_calibration_and_held_out_texts_have_the_requested_sizes_and_no_overlap(embedder: ModelSpec) -> None:
    samples = read_samples(Calibration(size=1024), embedder)
    assert (len(set(samples.calibration)), len(set(samples.held_out))) == (1024, 256)
    assert not set(samples.calibration) & set(samples.held_out)
    whole = " ".join(str(text) for text in samples.calibration)
    assert not [text for text in samples.held_out if len(str(text)) > 60 and str(text) in whole]


def test_a_seed_gives_the_same_texts_always(embedder: ModelSpec) -> None:
    first, again = (read_samples(Calibration(size=64), embedder) for _ in range(2))
    assert first == again
    assert first.digest == again.digest
    assert read_samples(Calibration(size=64, seed=1), embedder).digest != first.digest
    assert read_samples(Calibration(size=65), embedder).digest != first.digest


def test_packaged_texts_are_of_many_scripts_and_lengths(embedder: ModelSpec) -> None:
    texts = [str(text) for text in read_samples(Calibration(size=512), embedder).calibration]
    lengths = sorted(map(len, texts))
    assert lengths[len(texts) // 10] < 60 < 600 < lengths[-len(texts) // 10]
    for first, last in ("az", "ая", "一鿿", "؀ۿ", "ऀॿ", "가힣", "ぁん"):
        assert sum(any(first <= sign <= last for sign in text) for text in texts) >= 3


def test_a_reranker_reads_pairs_and_a_template_its_prompt() -> None:
    spec = spec_of("bert-rerank-pad7")
    samples = read_samples(Calibration(size=32), spec)
    assert all(isinstance(each, Pair) and all(each) for side in samples for each in side)
    filled = read_spec(resolve(str(GOLDEN / "bert-rerank-pad7")), template=named_template("{query} ? {document}"))
    assert all(isinstance(each, Templated) for each in read_samples(Calibration(size=32), filled).calibration)


def test_a_classifier_reads_texts_and_pairs() -> None:
    samples = read_samples(Calibration(size=32), spec_of("bert-topics-bf16-sharded"))
    assert {type(each) for each in samples.calibration} == {str, Pair}


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_every_text_of_a_file_is_used_in_shuffled_order(embedder: ModelSpec, tmp_path: Path, suffix: str) -> None:
    texts = [f"text {number}" for number in range(100)]
    lines = texts if suffix == "txt" else [json.dumps({"id": 1, "article": text}) for text in texts]
    path = tmp_path / f"own.{suffix}"
    path.write_text("\n".join(lines) + "\n")
    samples = read_samples(Calibration(dataset=str(path), size=500), embedder)
    assert sorted(map(str, sum(samples, ()))) == sorted(texts)
    assert len(samples.held_out) == 25
    assert len(read_samples(Calibration(dataset=str(path), size=64), embedder).calibration) == 64


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("few.txt", "a\nb\n", "has 2 different texts; at least 16"),
        ("bad.jsonl", '{"text": "a"}\nnot json\n', "line 2"),
        ("other.jsonl", '{"title": "a"}\n', "line 1: no text in text or article or document"),
        ("latin.txt", b"\xff\xfe\xe9", "cannot be read"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(
    embedder: ModelSpec, tmp_path: Path, name: str, body: str | bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    with pytest.raises(ConfigError, match=said):
        read_samples(Calibration(dataset=str(path)), embedder)


def test_an_unknown_data_set_is_refused_with_the_allowed_values(embedder: ModelSpec) -> None:
    with pytest.raises(ConfigError, match=r"a \.txt file with a text on each line"):
        read_samples(Calibration(dataset="someone/texts"), embedder)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_samples(Calibration(dataset="missing.txt"), embedder)


def test_trusss_default_means_the_packaged_texts_and_says_so(
    embedder: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        samples: Samples = read_samples(Calibration(dataset=HUB_DEFAULT), embedder)
    assert samples == read_samples(Calibration(), embedder)
    assert [record.message for record in caplog.records if HUB_DEFAULT in record.message]


def test_inputs_are_encoded_with_the_models_length_and_no_longer_than_asked(embedder: ModelSpec) -> None:
    samples, tokenizer = read_samples(Calibration(size=64), embedder), GOLDEN / "bert-cls-normalize" / "tokenizer.json"
    lengths = [len(tokens) for tokens in encode(samples.calibration, embedder, tokenizer, 1536)]
    assert max(lengths) == embedder.max_seq_len
    assert max(len(tokens) for tokens in encode(samples.calibration, embedder, tokenizer, 12)) == 12


def test_the_quantisation_comes_from_its_setting_or_from_the_dtype() -> None:
    assert quantization_of(Settings()) is quantization_of(Settings(quantization_type="no_quant")) is None
    asked = Settings(quantization_type="fp8_mlp_only", smooth_quant_alpha=0.7, calib_size=64, calib_dataset="own.txt")
    found = quantization_of(asked)
    assert found is not None
    assert (found.type, found.alpha) == ("fp8_mlp_only", 0.7)
    assert found.calibration == Calibration(dataset="own.txt", size=64)
    assert quantization_of(Settings(dtype="int8")) == quantization_of(Settings(quantization_type="fp8"))
    assert quantization_of(Settings(dtype="float32", quantization_type="fp8")) is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"smooth_quant_alpha": 1.5}, "Expected `float` <= 1"),
        ({"quantization_type": "int8"}, "expected one of no_quant, fp8, fp8_kv, fp8_mlp_only, fp4"),
        ({"dtype": "int8", "quantization_type": "no_quant"}, "exclude each other"),
        ({"dtype": "int8", "quantization_type": "fp4"}, "dtype int8 and quantization_type fp4 exclude each other"),
        ({"dtype": "int8", "quantization_type": "int8_weight_only"}, "exclude each other"),
    ],
)
def test_settings_that_cannot_be_are_refused(flags: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings.load(flags, {})


@pytest.mark.parametrize("kind", WEIGHT_ONLY)
def test_smoothing_is_refused_if_only_weights_are_quantised(kind: str) -> None:
    asked = Settings.load({"quantization_type": kind, "smooth_quant_alpha": 0.5}, {})
    with pytest.raises(ConfigError, match=f"smooth_quant_alpha and quantization_type {kind} exclude each other"):
        quantization_of(asked)


def test_trusss_block_says_how_to_calibrate_where_it_quantises() -> None:
    build = {"base_model": "encoder", "checkpoint_repository": {"source": "HF", "repo": "a/b"}}
    plain = Settings.from_truss_config({"trt_llm": {"build": build}})
    assert (plain.quantization_type, plain.calib_size) == (None, 512)
    asked = {**build, "quantization_type": "fp8", "quantization_config": {"calib_size": 128}}
    settings = Settings.from_truss_config({"trt_llm": {"build": asked}})
    assert (settings.quantization_type, settings.calib_size, settings.calib_dataset) == ("fp8", 128, HUB_DEFAULT)


@pytest.mark.parametrize(
    ("max_tokens", "least", "count"), [(1e9, 0, 5), (30, 0, 3), (31, 0, 4), (30, 4, 4), (0, 0, 0), (0, 9, 5)]
)
def test_the_first_inputs_are_taken_until_they_have_enough_tokens(max_tokens: float, least: int, count: int) -> None:
    inputs = [Tokens(np.zeros(10, np.int32), np.zeros(10, np.int32))] * 5
    assert len(first_inputs(inputs, max_tokens, least)) == count


def test_progress_says_what_is_left_also_if_the_process_was_paused_before_the_first_item(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(time, "monotonic", iter((0.0, 11.0, 12.0, 16.0)).__next__)
    caplog.set_level("INFO")
    assert list(with_progress("abc", "calibrating")) == [(0, "a"), (1, "b"), (2, "c")]
    assert [record.message for record in caplog.records] == ["calibrating: 1 of 3 batches, about 24 s left"]
