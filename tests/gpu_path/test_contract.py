"""All calls of TensorRT-LLM by the engine, bound to the documented signatures (signatures.json).

If the real package is installed, the signatures are compared with it.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.registry import require
from bei_core.engines.tensorrt_llm._compat import VERSION, check_version, upstream
from bei_core.engines.tensorrt_llm.classes import PackedModel
from bei_core.errors import EngineUnavailableError
from bei_core.models.rope import rope_tables
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import (
    CASES,
    GROUP_CASES,
    HEAD_CASES,
    HEAD_CLASSIFICATION_CASES,
    Case,
    ClassificationCase,
)
from tests.gpu_path.conftest import IS_REAL, Builder

SNAPSHOT = json.loads((Path(__file__).parent / "signatures.json").read_text())
ENTRIES: dict[str, dict[str, Any]] = SNAPSHOT["entries"]
_ALL: tuple[Case | ClassificationCase, ...] = (*CASES, *GROUP_CASES, *HEAD_CASES, *HEAD_CLASSIFICATION_CASES)
CASE_OF = {case.name: case for case in _ALL}
# A model with CUDA graphs, query and key norms, and gated MLPs; one with a window; one with token types; two whose
# rotary embedding is fused, the second with scaled frequencies.
USERS = ("qwen3-embedding", "gemma2-multilingual", "bert-cls-normalize", "qwen2-heads-32", "llama-heads-32")

only_on_shim = pytest.mark.skipif(IS_REAL, reason="the stand-in notes its calls; the real one is held to the snapshot")


def signature(entry: dict[str, Any]) -> Signature:
    parameters = [
        Parameter(each["name"], getattr(Parameter, each["kind"]), default=each.get("default", Parameter.empty))
        for each in entry["parameters"]
    ]
    return Signature(parameters)


def real(name: str) -> Any:
    owner, _, member = name.partition(".")
    return getattr(upstream(owner), member) if member else upstream(owner)


def test_the_signatures_are_of_the_supported_version() -> None:
    assert SNAPSHOT["tensorrt_llm"] == VERSION


@only_on_shim
def test_every_call_binds_to_the_documented_signature(built: Builder) -> None:
    from tensorrt_llm.calls import CALLS

    CALLS.clear()
    for name in USERS:
        case = CASE_OF[name]
        checkpoint = resolve(str(case.folder))
        engine = built(checkpoint, read_spec(checkpoint)).engine
        engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids]))
        engine.close()
    for name, args, kwargs in CALLS:
        bound = signature(ENTRIES[name]).bind(*args, **kwargs)
        rest = bound.arguments.get("kwargs", {}) if name == "LLM" else {}
        assert set(rest) <= set(ENTRIES[name].get("fields", ())), f"{name} is given {sorted(rest)}"
    counts = Counter(name for name, _, _ in CALLS)
    expected = {"LLM", "LLM.encode", "EncodeCudaGraphConfig", "register_auto_model", "Attention", "Attention.forward"}
    assert expected | {"Linear", "Linear.load_weights", "RopeParams", "PositionalEmbeddingParams"} <= counts.keys()
    assert counts["LLM"] == len(USERS)


@only_on_shim
def test_no_call_passes_extra_inputs_to_the_model(built: Builder) -> None:
    """TensorRT-LLM refuses them together with CUDA graphs, so types and pooling mask are packed into the ids."""
    from tensorrt_llm.calls import CALLS

    case = CASE_OF["bert-cls-normalize"]
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint)).engine
    CALLS.clear()
    engine.forward(Batch.pack([Tokens(ids, np.ones_like(ids)) for ids in case.ids]))
    (call,) = (kwargs for name, _, kwargs in CALLS if name == "LLM.encode")
    assert call == {"return_raw_logits": True}


def test_our_class_has_the_methods_that_tensorrt_llm_calls() -> None:
    entry = ENTRIES["model"]
    assert all(hasattr(PackedModel, name) for name in entry["attributes"] if name != "model_config")
    given = {each["name"]: None for each in entry["parameters"]}
    inspect.signature(PackedModel.forward).bind(None, **given, multi_item_part_lens=None)
    # TensorRT-LLM inspects the argument names for `weight_mapper`; our method has none.
    assert inspect.getfullargspec(PackedModel.load_weights).args == ["self", "weights"]


def test_the_overridden_apply_rope_has_the_documented_signature() -> None:
    from bei_core.engines.tensorrt_llm.kernels import PackedAttention

    names = [each["name"] for each in ENTRIES["Attention.apply_rope"]["parameters"]]
    assert list(inspect.signature(PackedAttention.apply_rope).parameters) == ["self", *names]


@pytest.mark.parametrize("name", [name for name in ENTRIES if name != "model"])
def test_the_installed_package_has_the_documented_signatures(name: str) -> None:
    """Checks that the stand-in has all parameters in use, or, with the real package, that signatures.json is right."""
    found = inspect.signature(real(name)).parameters
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in found.values())
    for each in ENTRIES[name]["parameters"]:
        if each["kind"] != "VAR_KEYWORD":
            assert each["name"] in found or takes_any, f"{name} has no {each['name']}"


@only_on_shim
def test_attention_without_norms_and_rope_leaves_query_key_and_value_fused(built: Builder) -> None:
    """As in BERT. Splitting and joining them again would copy all three."""
    case = CASE_OF["bert-cls-normalize"]
    checkpoint = resolve(str(case.folder))
    engine: Any = built(checkpoint, read_spec(checkpoint)).engine
    attention = engine._llm.model.model.transformer.layers[0].attention
    fused = torch.zeros(3, 3 * attention.q_size)
    assert attention.apply_rope(fused, None, None, torch.arange(3)[None]) == (fused, None, None)


def test_the_hint_to_install_names_the_version_that_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match=rf"pip install tensorrt-llm=={VERSION} "):
        require("tensorrt_llm")


def test_another_version_is_refused_with_the_command_that_installs_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tensorrt_llm.__version__", "1.2.1")
    with pytest.raises(EngineUnavailableError, match=rf"1\.2\.1 is installed.*pip install tensorrt-llm=={VERSION}"):
        check_version()


def test_the_error_for_a_name_that_has_moved_says_where_it_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt_llm.nowhere", "tensorrt_llm"):
        monkeypatch.setattr("bei_core.engines.tensorrt_llm._compat._MODULES", {"Linear": module})
        with pytest.raises(EngineUnavailableError, match=rf"no Linear in {module};"):
            upstream("Linear")


@only_on_shim
@pytest.mark.parametrize(
    ("name", "dtype", "is_fused"),
    [
        ("qwen2-heads-32", "bfloat16", True),
        ("mistral-scores-heads-64", "bfloat16", True),
        ("mistral-scores-heads-64", "float32", False),
        ("llama-heads-32", "bfloat16", True),  # llama3's scaling of frequencies
        ("qwen3-heads-32", "bfloat16", False),  # norms of queries and keys
        ("qwen2-gte-both-ways", "bfloat16", False),
    ],
)
def test_the_kernel_gets_the_rotary_embedding_of_a_causal_decoder(
    name: str, dtype: str, is_fused: bool, built: Builder
) -> None:
    """Its table is that of our own rotary embedding, which equals transformers' (test_parity.py)."""
    checkpoint = resolve(str(CASE_OF[name].folder))
    spec = read_spec(checkpoint)
    attention = built(checkpoint, spec, dtype=dtype).engine._llm.model.model.transformer.layers[0].attention  # type: ignore[attr-defined]
    assert (attention.rope is not None, attention.norm_and_rope.rope is None) == (is_fused, is_fused)
    if is_fused:
        cos, sin = rope_tables(spec.config, attention.head_dim, spec.max_seq_len)
        for ours, table in zip((cos, sin), attention.rope.tables(), strict=True):
            np.testing.assert_allclose(table.numpy(), ours[:, : attention.head_dim // 2], atol=1e-6)
