"""Refusals of the CPU engine before it allocates memory: unknown classes, impossible sizes."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bei_core.checkpoint import resolve
from bei_core.engines.openvino.graph import build_graph
from bei_core.errors import BeiError, CheckpointError, UnsupportedModelError
from bei_core.models.families import FAMILIES, family_of
from bei_core.models.spec import read_spec
from tests.golden.cases import CASES, GROUP_CASES

FOLDERS = {case.name: case.folder for case in [*CASES, *GROUP_CASES]}
BERT, LLAMA = FOLDERS["bert-plain-masked-lm"], FOLDERS["llama-3-rope-last"]
QWEN2, NOMIC = FOLDERS["qwen2-tied-lm-last"], FOLDERS["nomic-mean-bf16"]
BIASED, EXPERTS = FOLDERS["llama-biased-mean-f16"], FOLDERS["nomic-v2-moe"]
MAX_MEMORY = 30_000_000  # bytes


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        (BERT, {"num_attention_heads": 0}, "num_attention_heads 0 is not a whole number from 1 to"),
        (BERT, {"num_attention_heads": 7}, "hidden size 32 is not a multiple of 7 heads"),
        (BERT, {"num_attention_heads": "four"}, "num_attention_heads 'four' is not a whole number"),
        (BERT, {"hidden_size": 10**9}, "hidden_size 1000000000 is not a whole number"),
        (BERT, {"hidden_size": 48}, r"has shape \(\d+, 32\); config.json implies \(\d+, 48\)"),
        (BERT, {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is not a whole number"),
        (BERT, {"num_hidden_layers": 1000}, r"the checkpoint has no tensor .*layer\.2\."),
        (BERT, {"intermediate_size": -1}, "intermediate_size -1 is not a whole number"),
        (LLAMA, {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is not a whole number"),
        (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers True is not a whole number"),
        (LLAMA, {"num_attention_heads": 0}, "num_attention_heads 0 is not a whole number"),
        (LLAMA, {"num_key_value_heads": 3}, "4 query heads are not a multiple of 3 key heads"),
        (LLAMA, {"num_key_value_heads": 0}, "num_key_value_heads 0 is not a whole number"),
        (LLAMA, {"head_dim": 7}, "attention heads of size 7: rotary embedding needs an even size"),
        (LLAMA, {"head_dim": 8}, "config.json implies"),
        (LLAMA, {"intermediate_size": 1e9}, "intermediate_size 1000000000 is not a whole number"),
        (QWEN2, {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
        (BIASED, {"attention_bias": False}, r"a tensor layers\.0\.self_attn\.q_proj\.bias, but by config\.json"),
        (BIASED, {"mlp_bias": False}, r"a tensor layers\.0\.mlp\.down_proj\.bias, but by config\.json"),
        (NOMIC, {"n_head": 0}, "n_head 0 is not a whole number"),
        (NOMIC, {"n_inner": 47}, "config.json implies"),
        (
            EXPERTS,
            {"num_experts": None},
            "config.json has no `num_experts`, but the checkpoint has a router of",
        ),
    ],
)
def test_impossible_sizes_are_refused_by_name(
    folder: Path, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BeiError, match=message):
        build(changed(folder, changes, tmp_path))


@pytest.mark.parametrize("count", [10**9, -1])
def test_impossible_numbers_of_labels_are_refused_by_name(count: int, tmp_path: Path) -> None:
    changes: dict[str, object] = {"architectures": ["BertForSequenceClassification"], "num_labels": count}
    with pytest.raises(UnsupportedModelError, match=f"num_labels {count} is not a number from 1 to"):
        build(changed(BERT, changes, tmp_path))


def test_a_length_that_no_memory_holds_is_refused_by_name(tmp_path: Path) -> None:
    folder = changed(LLAMA, {"max_position_embeddings": 10**12}, tmp_path)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10**12}))
    with pytest.raises(UnsupportedModelError, match="longest input is 1000000000000 tokens, more than"):
        build(folder)


def test_a_dense_module_of_another_width_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = changed(FOLDERS["bert-last-dense-tanh"], {}, tmp_path)
    save_file({"linear.weight": np.zeros((6, 33), np.float32)}, folder / "2_Dense" / "model.safetensors")
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    (folder / "2_Dense" / "config.json").write_text(json.dumps({**config, "in_features": 33, "out_features": 6}))
    with pytest.raises(
        CheckpointError, match=r"tensor linear.weight has shape \(6, 33\); config.json implies .*, 36\)$"
    ):
        build(folder)


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("LlamaBidirectinalModel", "LlamaBidirectional, Llama"),
        ("Qwen2VLForConditionalGeneration", "Qwen2"),
        ("VoyageQwen3BidirectionalEmbedModel", "Qwen3Bidirectional, Qwen3"),
    ],
)
def test_the_error_of_an_unknown_class_names_similar_families_and_says_how_a_class_names_one(
    name: str, similar: str
) -> None:
    with pytest.raises(UnsupportedModelError) as failure:
        family_of(name)
    text = str(failure.value)
    assert f"architecture {name} is not supported" in text
    assert f"similar families are {similar}" in text
    assert "LlamaForCausalLM" in text
    assert all(family in text for family in FAMILIES)
    assert "\n" not in text


def test_a_class_with_no_similar_family_is_refused_too() -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape("there is no family Zamba2. The class in config.json")):
        family_of("Zamba2ForCausalLM")


def changed(folder: Path, changes: dict[str, object], to: Path) -> Path:
    """A copy of a checkpoint with other values in config.json."""
    copy = to / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def build(folder: Path) -> None:
    """Build the graph. Raises AssertionError if Python or NumPy allocate much before it is refused."""
    tracemalloc.start()
    try:
        checkpoint = resolve(str(folder))
        build_graph(read_spec(checkpoint), checkpoint)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > MAX_MEMORY:
            raise AssertionError(f"{peak} bytes were allocated")
