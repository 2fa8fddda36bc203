"""Layers and FlexAttention compiled by torch.compile, here by C++ for the CPU: the same rows, and saved kernels."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.codegen.common import KernelArgs
from torch._inductor.utils import run_and_get_code

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.torch import loading
from bei_core.engines.torch.engine import load
from bei_core.engines.torch.folder import facts_of, write_folder
from bei_core.engines.torch.kernels import varlen
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.kernels.torch import Linear
from bei_core.engines.torch.loading import load_folder
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences, flatten
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import CASES, GROUP_CASES, Case
from tests.golden.tolerance import F32, compare
from tests.gpu_path.conftest import Builder

NAMED = {case.name: case for case in (*CASES, *GROUP_CASES)}


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(loading, "COMPILED_ON", {"cpu"})
    monkeypatch.setattr(loading, "_USER_SET_CACHE", False)  # torch's compiler sets the variables when it is imported
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what the engine sets is undone
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that torch.compile makes, which are run as they are."""
    found = list[torch.fx.GraphModule]()

    def keep(graph: torch.fx.GraphModule, inputs: object) -> Any:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    return found


def batches(case: Case) -> list[Batch]:
    return [Batch.pack([Tokens(ids, np.zeros_like(ids))]) for ids in case.ids]


# The number of kinds of layers of a model: in some, the first layer lacks a norm, or every second one has experts.
KINDS = {
    "bert-cls-normalize": 1,
    "mpnet-mean-normalize": 1,
    "modernbert-plain-masked-lm": 2,
    "nomic-v2-moe": 2,
    "gte-en-plain": 1,
    "deberta-v3-list-cls": 1,
    "jina-code-qk-norm": 1,
    "t5-gated-with-decoder": 1,
    "qwen3-embedding": 1,
    "gemma2-multilingual": 1,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_layer_is_one_graph_for_all_layers_of_its_kind_and_all_lengths(
    name: str, built: Builder, graphs: list[torch.fx.GraphModule]
) -> None:
    checkpoint = resolve(str(NAMED[name].folder))
    engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    assert len(graphs) == KINDS[name]
    for lengths in ([11], [7, 2, 5], [13]):
        engine.forward(Batch.pack([Tokens(*np.zeros((2, length), np.int32)) for length in lengths]))
    assert len(graphs) == KINDS[name]
    for graph in graphs:  # attention is one operator, whatever kernel it chooses
        assert [str(node.target) for node in graph.graph.nodes].count("bei.attention.default") == 1


def test_layers_that_are_not_compiled_do_not_import_the_compiler(tmp_path: Path) -> None:
    """Its import takes seconds. A model on a CPU, a divided one, or one with `torch_compile` false does not need it."""
    checkpoint = resolve(str(NAMED["bert-cls-normalize"].folder))
    write_folder(tmp_path, checkpoint, facts_of(read_spec(checkpoint)), "f32")
    code = f"""
import sys
from pathlib import Path
import torch
from bei_core.engines.torch.loading import TRIAL, load_folder
load_folder(Path({str(tmp_path)!r}), "f32", torch.device("cpu")).compute(TRIAL)
print("torch._dynamo" in sys.modules)
"""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "packages")}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.filterwarnings("ignore")  # of torch's own code
@pytest.mark.parametrize(
    ("name", "precision", "kernels"),
    [
        ("bert-cls-normalize", "bf16", 3),  # both norms, gelu
        # Both norms, norms of queries and keys with rotation, attention's result to fp8, silu, the last sum.
        ("qwen3-embedding", "fp8", 6),
    ],
)
def test_all_operations_between_two_matmuls_are_one_kernel(
    name: str, precision: str, kernels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels are written and not compiled, so the rows are undefined."""
    monkeypatch.setattr("torch._inductor.async_compile.AsyncCompile.cpp_pybinding", lambda *_: lambda *_: None)
    checkpoint = resolve(str(NAMED[name].folder))
    write_folder(tmp_path, checkpoint, facts_of(read_spec(checkpoint)), "bf16")
    model = load_folder(tmp_path, "bf16", torch.device("cpu"))
    for layer in model.modules():
        if precision == "fp8" and isinstance(layer, Linear):
            layer.input_scale = layer.weight_scale = torch.ones(())
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    _, (code,) = run_and_get_code(loading.compile_layers, model, tmp_path)
    found = re.findall(r"^ +(cpp_fused_\w+)\(", code, re.MULTILINE)
    assert len(found) == kernels
    rotary = [kernel for kernel in found if "_flip_" in kernel]
    loops = code.partition(f"{rotary[0]} = ")[2].partition("''')")[0].count("for(int64_t x0=") if rotary else 1
    assert loops == 1


def test_models_compiled_before_do_not_keep_a_model_from_being_compiled(
    built: Builder, graphs: list[torch.fx.GraphModule]
) -> None:
    """Torch compiles a function at most `recompile_limit` times, and runs it uncompiled afterwards."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for number, name in enumerate(("bert-cls-normalize", "roberta-mean-normalize", "distilbert-mean"), 1):
            checkpoint = resolve(str(NAMED[name].folder))
            built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32")
            assert len(graphs) == number


@pytest.mark.filterwarnings("ignore")  # of torch's own code
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
@pytest.mark.parametrize("name", ["bert-cls-normalize", "qwen3-embedding"])
def test_compiled_layers_give_the_rows_of_transformers(
    name: str, built: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    case = NAMED[name]
    checkpoint = resolve(str(case.folder))
    opened = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32")
    assert "torch.compile fails" not in caplog.text
    model = opened.engine._model  # type: ignore[attr-defined]
    assert "run" in vars(model.transformer)
    compare(np.concatenate([opened.engine.forward(batch) for batch in batches(case)]), case.raw, F32)
    whole = Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids])
    compare(opened.engine.forward(whole), case.raw, F32)
    known = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    lengths = {len(ids) for ids in case.ids}
    new = next(length for length in range(3, 100) if length not in lengths)
    opened.engine.forward(Batch.pack([Tokens(np.ones(new, np.int32), np.zeros(new, np.int32))]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == known  # a new length compiles nothing
    assert any((opened.tokenizer.parent / ".tuned" / "torch").rglob("*.so"))


def test_kernels_of_each_model_are_saved_in_its_own_folder(built: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """So each of them is served alone without compiling again. Torch sets both variables itself, too."""
    found = list[tuple[str, str | None]]()

    def compile_(function: Any, **_: object) -> Any:
        def run(*given: Any) -> Any:
            if cache := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
                found.append((cache, os.environ.get("TRITON_CACHE_DIR")))
                os.environ["TRITON_CACHE_DIR"] = cache
            return function(*given)

        return run

    monkeypatch.setattr("torch.compile", compile_)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    for name in ("bert-cls-normalize", "distilbert-mean"):
        checkpoint = resolve(str(NAMED[name].folder))
        opened = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32")
        own = str(opened.tokenizer.parent / ".tuned" / "torch")
        assert found[0] == (own, None)
        assert set(found[1:]) == {(own, own)}
        assert not {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} & os.environ.keys()
        found.clear()


def test_requests_wait_for_no_compilation_of_flex_attention(
    built: Builder, graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in batches of one block of its mask nor of several; what the load compiles is saved."""
    monkeypatch.setattr(varlen, "is_flex", lambda query, sizes, bias: sizes.soft_cap is not None)
    varlen._compiled_flex.cache_clear()
    checkpoint = resolve(str(NAMED["gemma2-multilingual"].folder))
    engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    count = len(graphs)
    for num_texts in (3, 40):
        engine.forward(Batch.pack([Tokens(*np.zeros((2, 6), np.int32))] * num_texts))
    assert len(graphs) == count


def test_without_torch_compile_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither layers nor FlexAttention, which Gemma 2 has on a GPU."""
    monkeypatch.setattr("torch.compile", lambda *_, **__: pytest.fail("something is compiled"))
    monkeypatch.setattr(varlen, "is_flex", lambda *_: True)
    varlen._compiled_flex.cache_clear()
    case = NAMED["gemma2-multilingual"]
    checkpoint = resolve(str(case.folder))
    write_folder(tmp_path, checkpoint, facts_of(spec := read_spec(checkpoint)), "f32")
    manifest: Any = SimpleNamespace(precision="f32")
    engine = load(tmp_path, spec, manifest, dtype="auto", compiled=False)
    compare(np.concatenate([engine.forward(batch) for batch in batches(case)]), case.raw, F32)


def test_a_closed_engine_keeps_no_memory_also_before_garbage_is_collected(
    built: Builder, graphs: list[torch.fx.GraphModule]
) -> None:
    checkpoint = resolve(str(NAMED["bert-cls-normalize"].folder))
    engine: Any = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    weights = [weakref.ref(layer.mlp.up_proj) for layer in engine._model.transformer.layers]
    assert graphs
    gc.disable()
    try:
        engine.close()
        assert [each() for each in weights] == [None] * len(weights)
    finally:
        gc.enable()


def test_the_engine_runs_uncompiled_if_the_compiler_fails(
    built: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch.compile", lambda function, **_: fail)
    case = NAMED["bert-cls-normalize"]
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    assert "layers are not compiled and slower, because torch.compile fails: no compiler" in caplog.text
    compare(np.concatenate([engine.forward(batch) for batch in batches(case)]), case.raw, F32)


@pytest.mark.filterwarnings("ignore")  # of torch's own code
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_compiled_flex_attention_follows_the_definition_and_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A soft cap, a window, causal and biases by distance together, on batches of several blocks.

    Torch 2.14 replaces the name of a size in its C++ code as text, so "ks3" also inside "ks31"; its Triton code for
    GPUs has no such step. The patch makes the names end with "_".
    """
    names = KernelArgs.size
    monkeypatch.setattr(KernelArgs, "size", lambda args, name: _ended(names, args, name))
    varlen._compiled_flex.cache_clear()
    bias = DistanceBias(4, 512)
    sizes = AttentionSizes(256, 4, 2, 64, 0.125, bias=False, out_bias=False, causal=True, window=100, soft_cap=50.0)
    graphs = []
    for lengths in ([300, 1, 130], [77, 400]):
        batch = Batch.pack([Tokens(*np.zeros((2, length), np.int32)) for length in lengths])
        sequences = Sequences.of(flatten(batch), batch.num_tokens, lengths)
        query, key, value = (torch.randn(batch.num_tokens, heads, 64) for heads in (4, 2, 2))
        with torch.inference_mode():
            found = varlen.flex(query, key, value, sequences, sizes, bias)
            expected = varlen.by_sequence(query, key, value, sequences, sizes, bias)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]


def _ended(names: Any, args: Any, name: Any) -> str:
    found: str = names(args, name)
    if not found.endswith("_"):
        found = args.sizevars[name] = f"{found}_"
    return found
