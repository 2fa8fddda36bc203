"""The ways to compute attention of a packed batch. No GPU is needed: kernels are emulated, or called without data."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bei_core.engines.torch.kernels import varlen
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.kernels.torch import Attention, Kernels
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences

LENGTHS, SPARE, HEADS, KV_HEADS, SIZE = [5, 1, 17, 9], 4, 4, 2, 16
PLAIN = AttentionSizes(HEADS * SIZE, HEADS, KV_HEADS, SIZE, 0.3, bias=False, out_bias=False, causal=False)
RULES = {
    "full": PLAIN,
    "causal": replace(PLAIN, causal=True),
    "window": replace(PLAIN, window=3),
    "causal window": replace(PLAIN, causal=True, window=3),
}
CAPPED = {f"{name}, capped": replace(sizes, soft_cap=2.0) for name, sizes in RULES.items()}


def packed() -> tuple[Tensor, Tensor, Tensor, Sequences]:
    """Queries, keys, values and sequences; the last tokens belong to none and are NaN."""
    total, generator = sum(LENGTHS) + SPARE, torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(total, heads, SIZE, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
    for x in (query, key, value):
        x[-SPARE:] = float("nan")
    positions = torch.cat([torch.arange(length) for length in [*LENGTHS, SPARE]])
    blank = torch.zeros(total, dtype=torch.int32)
    sequences = Sequences(blank, blank, positions, blank.bool(), torch.tensor(LENGTHS, dtype=torch.int32), LENGTHS)
    return query, key, value, sequences


def expected(sizes: AttentionSizes, bias: DistanceBias | None = None) -> Tensor:
    """Attention by its definition, one query at a time."""
    query, key, value, _ = packed()
    rows, start = [], 0
    for length in LENGTHS:
        for at in range(length):
            seen = [
                other
                for other in range(length)
                if (other <= at or not sizes.causal) and (sizes.window is None or abs(at - other) < sizes.window)
            ]
            keys, values = (
                x[[start + other for other in seen]].repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value)
            )
            scores = torch.einsum("ns,kns->nk", query[start + at], keys) * sizes.scale
            if bias is not None:
                scores = scores + bias.biases[:, at - torch.tensor(seen) + bias.max_len - 1]
            scores = scores if sizes.soft_cap is None else sizes.soft_cap * torch.tanh(scores / sizes.soft_cap)
            rows.append(torch.einsum("nk,kns->ns", scores.softmax(-1), values))
        start += length
    return torch.stack(rows)


def attend(sizes: AttentionSizes, bias: DistanceBias | None = None, kernels: Kernels | None = None) -> Tensor:
    """Attention of the `packed` queries by a layer, without its linear layers."""
    return Attention(sizes, None, kernels or Kernels(torch.float32), bias).attend(*packed())


@pytest.mark.parametrize("name", [*RULES, *CAPPED])
def test_one_sequence_at_a_time_follows_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {**RULES, **CAPPED}[name]
    monkeypatch.setattr(varlen, "_QUERY_BLOCK", 4)
    mixed = attend(sizes)
    torch.testing.assert_close(mixed[:-SPARE], expected(sizes))
    assert torch.isnan(mixed[-SPARE:]).all()


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("name", [*RULES, *CAPPED])
def test_flex_attention_follows_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, which is for GPUs."""
    sizes = {**RULES, **CAPPED}[name]
    monkeypatch.setattr(varlen, "_compiled_flex", lambda *_: flex_attention)
    query, key, value, sequences = packed()
    for x in (query, key, value):
        x[-SPARE:] = 0  # without a compiled kernel, masked scores are computed, and 0 times NaN is NaN
    torch.testing.assert_close(varlen.flex(query, key, value, sequences, sizes)[:-SPARE], expected(sizes))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 129, 300])
def test_the_blocks_of_flex_attention_are_those_of_create_block_mask(causal: bool, window: int | None) -> None:
    for lengths, spare in (([300, 1, 130], 0), ([128, 5, 122, 1], 0), ([1, 640, 2], 9), ([77], 200)):
        total, positions = sum(lengths) + spare, [*map(torch.arange, [*lengths, spare])]
        blank, rows = torch.zeros(total, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32)
        sequences = Sequences(blank, blank, torch.cat(positions).int(), blank.bool(), rows, lengths)
        found = sequences.block_mask(causal=causal, window=window)
        exact = create_block_mask(found.mask_mod, None, None, total, total, device="cpu")
        assert found.seq_lengths == exact.seq_lengths
        for counts, indices in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
            assert torch.equal(getattr(found, counts), getattr(exact, counts))
            for row, count in enumerate(getattr(found, counts)[0, 0]):
                assert torch.equal(*(getattr(mask, indices)[0, 0, row, :count] for mask in (found, exact)))


ALIBI = DistanceBias(HEADS, 17)
BIASED = {name: sizes for name, sizes in {**RULES, **CAPPED}.items() if "window" not in name}


@pytest.mark.parametrize("name", BIASED)
def test_biases_by_distance_follow_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of queries of one sequence, of which each knows its position."""
    monkeypatch.setattr(varlen, "_QUERY_BLOCK", 4)
    mixed = attend(BIASED[name], ALIBI)
    torch.testing.assert_close(mixed[:-SPARE], expected(BIASED[name], ALIBI))


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("name", BIASED)
def test_flex_attention_adds_biases_by_distance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_compiled_flex", lambda *_: flex_attention)
    query, key, value, sequences = packed()
    for x in (query, key, value):
        x[-SPARE:] = 0
    mixed = varlen.flex(query, key, value, sequences, BIASED[name], ALIBI)
    torch.testing.assert_close(mixed[:-SPARE], expected(BIASED[name], ALIBI))


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize(("sizes", "bias"), [(RULES["causal window"], None), (PLAIN, ALIBI)])
def test_the_window_and_the_table_of_biases_are_not_dynamic_for_the_compiler(
    sizes: AttentionSizes, bias: DistanceBias | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a symbol in their place, torch 2.14 generates code that does not compile (the self-check compiles it)."""
    numbers: set[int] = set()

    def backend(graph: Any, inputs: list[Any]) -> Any:
        numbers.update(int(each) for each in inputs if isinstance(each, torch.SymInt))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=True, backend=backend)
    monkeypatch.setattr(varlen, "_compiled_flex", lambda *_: compiled)
    query, key, value, sequences = packed()
    for x in (query, key, value):
        x[-SPARE:] = 0
    mixed = varlen.flex(query, key, value, sequences, sizes, bias)
    torch.testing.assert_close(mixed[:-SPARE], expected(sizes, bias))
    assert sum(LENGTHS) + SPARE in numbers  # the number of tokens is dynamic
    assert not {sizes.window, 2 * ALIBI.max_len - 1} & numbers


def test_flex_attention_is_compiled_for_every_kind_of_layer_and_never_computes_all_pairs_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond `recompile_limit` torch would run the function uncompiled, with scores of all T x T pairs."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled(function: Any, **options: Any) -> Any:
        return torch_compile(function, backend=backend, **options)

    torch._dynamo.reset()
    varlen._compiled_flex.cache_clear()
    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    query, key, value, sequences = packed()
    kinds = [replace(CAPPED["full, capped"], window=window, causal=window == 3) for window in (None, 3, 5)]
    with torch._dynamo.config.patch(recompile_limit=1):
        for sizes in kinds:
            varlen.flex(query, key, value, sequences, sizes)
        assert len(graphs) == len(kinds)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            varlen.flex(query.double(), key.double(), value.double(), sequences, kinds[0])


def test_attention_goes_on_without_flex_attention_if_torch_cannot_run_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(varlen, "is_flex", lambda *_: True)
    monkeypatch.setattr(varlen, "_compiled_flex", fail)
    kernels, of_another_model = Kernels(torch.float32), Kernels(torch.float32)
    for _ in range(2):
        mixed = attend(CAPPED["full, capped"], kernels=kernels)
        torch.testing.assert_close(mixed[:-SPARE], expected(CAPPED["full, capped"]))
    (record,) = caplog.records
    assert (
        "FlexAttention is not used and attention is slower, because torch cannot run it: no compiler" in record.message
    )
    assert (kernels.uses_flex, of_another_model.uses_flex) == (False, True)


def test_too_little_memory_for_flex_attention_is_no_reason_to_go_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(varlen, "is_flex", lambda *_: True)
    monkeypatch.setattr(varlen, "_compiled_flex", fail)
    with pytest.raises(torch.OutOfMemoryError):
        attend(CAPPED["full, capped"], kernels=(kernels := Kernels(torch.float32)))
    assert kernels.uses_flex


def emulated_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What FlashAttention computes, by its definition of windows; rows that it does not write are NaN."""
    assert (max_q, enable_gqa) == (max(LENGTHS), True)
    out = torch.full_like(query, float("nan"))
    for start, end in itertools.pairwise(cu_seq_q):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)  # query - key
        left, right = (1000 if side < 0 else side for side in window_size)
        mask = (distance <= left) & (distance >= -right)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True
        )
        out[start:end] = mixed[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("name", RULES)
def test_windows_and_masks_become_arguments_of_flash_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_find_varlen", lambda: emulated_varlen_attn)
    mixed = varlen.flash(*packed(), RULES[name])
    torch.testing.assert_close(mixed[:-SPARE], expected(RULES[name]))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("has_varlen", [True, False])
def test_the_installed_torch_takes_the_call(name: str, has_varlen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without data: arguments and shapes are checked, nothing is computed."""
    if not has_varlen:
        monkeypatch.setattr(varlen, "_find_varlen", lambda: None)
    elif varlen._find_varlen() is None:
        pytest.skip("this version of torch has no varlen_attn with windows")
    query, key, value, sequences = packed()
    query, key, value = (x.to("meta", torch.bfloat16) for x in (query, key, value))
    with torch.inference_mode():
        there = replace(sequences, lengths=sequences.lengths.to("meta"))
        assert varlen.flash(query, key, value, there, RULES[name]).shape == query.shape


def test_cudnns_attention_which_torch_would_prefer_is_disabled() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    Kernels(torch.bfloat16)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_another_form_of_varlen_attn_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torch 2.10, whose function has neither windows nor grouped queries."""

    def older(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int) -> None:
        raise AssertionError("called")

    varlen._find_varlen.cache_clear()
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=older))
    assert varlen._find_varlen() is None
    varlen._find_varlen.cache_clear()
