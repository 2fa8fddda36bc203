"""Rope scaling by config.json, as transformers computes it. The goldens prove the other forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bei_core.errors import UnsupportedModelError
from bei_core.models.class_config import as_class_reads
from bei_core.models.rope import frequencies_of

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
# What `modeling_rope_utils` of transformers 4.57.6 gives for YARN with heads of size 8 and theta 10,000.
YARN_FREQUENCIES = [1.0, 0.0125, 0.00125, 0.000125]
MODERNBERT = {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
GEMMA = {"rope_theta": 1e6, "rope_local_base_freq": 10_000.0}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
LOCAL = np.array([1.0, 0.1, 0.01, 0.001])  # of theta 10,000


@pytest.mark.parametrize(
    ("more", "factor"),
    [
        ({"mscale": 0.7, "mscale_all_dim": 1.4}, 0.8872601282602985),
        ({"mscale": 0.7}, 1.2079441541679836),  # it has no effect alone
        ({}, 1.2079441541679836),
        ({"attention_factor": 1.5}, 1.5),
    ],
)
def test_yarn_scales_by_mscale_where_both_values_are_given(more: dict[str, float], factor: float) -> None:
    frequencies, found = frequencies_of({"rope_scaling": {**YARN, **more}}, 8)
    np.testing.assert_allclose(frequencies, YARN_FREQUENCIES, rtol=1e-6)
    assert found == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "original"),
    [
        ({"max_position_embeddings": 99}, 16),
        ({"original_max_position_embeddings": 16, "max_position_embeddings": 99}, None),
        ({"original_max_position_embeddings": 16}, 4),
        ({"max_position_embeddings": 16}, None),
    ],
)
@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_length_before_scaling_is_that_of_config_json_else_of_its_scaling(
    kind: str, config: dict[str, int], original: int | None
) -> None:
    """`standardize_rope_params` of transformers 5.5."""
    scaling = {**YARN, "rope_type": kind, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found, _ = frequencies_of({**config, "rope_scaling": {**scaling, "original_max_position_embeddings": original}}, 8)
    np.testing.assert_array_equal(found, frequencies_of({"rope_scaling": scaling}, 8)[0])


def test_yarn_that_shrinks_does_not_scale_cosines() -> None:
    assert frequencies_of({"rope_scaling": {**YARN, "factor": 0.5}}, 8)[1] == 1.0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**MODERNBERT, **LINEAR}, LOCAL / 4),  # ModernBERT scales all layers
        ({**GEMMA, **LINEAR}, LOCAL),  # Gemma 3 scales only layers with full attention
        ({**MODERNBERT, "global_rope_theta": 10_000.0, "local_rope_theta": None}, LOCAL),  # null: the other theta
    ],
)
def test_layers_with_a_window_have_the_theta_and_the_scaling_of_their_family(
    config: dict[str, Any], expected: list[float]
) -> None:
    frequencies, _ = frequencies_of(config, 8, layer_type="sliding_attention")
    np.testing.assert_allclose(frequencies, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("architecture", "config", "thetas"),
    [
        ("Gemma3TextModel", {}, (1e6, 1e4)),
        ("Gemma3TextModel", {"rope_theta": 777.0, "rope_local_base_freq": 55.0}, (777.0, 55.0)),
        ("ModernBertModel", {}, (160_000.0, 1e4)),
    ],
)
def test_rope_parameters_of_no_layer_type_are_ignored_by_classes_with_two_thetas(
    architecture: str, config: dict[str, Any], thetas: tuple[float, float]
) -> None:
    """So does transformers 5 for Gemma 3, and transformers 4 for both; transformers 5 refuses such a ModernBERT."""
    flat = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0, "full_attention": None}
    config = as_class_reads({"architectures": [architecture], "rope_parameters": flat, **config})
    for layer_type, theta in zip(("full_attention", "sliding_attention"), thetas, strict=True):
        frequencies, _ = frequencies_of(config, 4, layer_type=layer_type)
        assert frequencies[1] == pytest.approx(theta**-0.5)


@pytest.mark.parametrize("key", ["local_rope_theta", "rope_local_base_freq"])
@pytest.mark.parametrize("architecture", ["LlamaModel", "Qwen3Model", "MistralModel"])
@pytest.mark.parametrize("given", [{"rope_theta": 777.0}, {"rope_parameters": {"rope_theta": 777.0}}])
def test_a_class_with_one_theta_ignores_another_one(given: dict[str, Any], architecture: str, key: str) -> None:
    config = as_class_reads({"architectures": [architecture], key: 3.0, **given})
    for layer_type in ("full_attention", "sliding_attention"):
        assert frequencies_of(config, 4, layer_type=layer_type)[0][1] == pytest.approx(777**-0.5)


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({"rope_theta": 99.0, "rope_parameters": {"rope_theta": 777.0}}, 777.0),
        ({"rope_theta": 99.0, "rope_parameters": {"rope_type": "default"}}, 99.0),
        ({"rope_theta": 99.0, "rope_scaling": {"rope_type": "default", "rope_theta": 777.0}}, 777.0),
        ({"rope_scaling": {"rope_theta": 55.0}, "rope_parameters": {"rope_theta": 777.0}}, 55.0),
        ({"rope_theta": 99.0, "rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 777.0}}, 99.0),
        ({"rope_theta": 99.0, "rope_parameters": None, "rope_scaling": None}, 99.0),
        ({"rope_parameters": {"full_attention": {"rope_theta": 777.0}}, "rope_scaling": {"type": "default"}}, 777.0),
    ],
)
def test_theta_is_that_of_transformers_where_several_keys_may_name_it(config: dict[str, Any], theta: float) -> None:
    frequencies, _ = frequencies_of(config, 4)
    assert frequencies[1] == pytest.approx(theta**-0.5)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_scaling": {"type": "linear"}}, "factor; it is None"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor; it is '2'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor; it is None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "max_position_embeddings; it is None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "factor; it is 0"),
    ],
)
def test_a_scaling_without_its_numbers_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"config\.json: rope scaling needs a number above 0 as " + named):
        frequencies_of(config, 8)


def test_two_names_of_a_scaling_that_differ_are_refused() -> None:
    """transformers 4.57 scales by `type`, and transformers 5 by `rope_type`."""
    frequencies_of({"rope_scaling": {**YARN, "type": "yarn"}}, 8)
    with pytest.raises(UnsupportedModelError, match="has rope_type 'yarn' and type 'linear'; remove the one"):
        frequencies_of({"rope_scaling": {**YARN, "type": "linear"}}, 8)
