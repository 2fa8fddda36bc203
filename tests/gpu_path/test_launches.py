"""What a batch launches on a GPU, seen on tensors without data: the host never waits, a layer has few operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.torch.folder import facts_of
from bei_core.engines.torch.kernels import varlen
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models.model import Model
from bei_core.engines.torch.models.sequences import Sequences, flatten
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import CASES, GROUP_CASES

NAMED = {case.name: case for case in (*CASES, *GROUP_CASES)}
VIEWS = {"prim.device", "unflatten", "flatten", "chunk", "split", "split_with_sizes", "view", "slice", "select"}
# What tensors without data raise where the host needs a value or a shape of the GPU.
WAITS = (DataDependentOutputException, DynamicOutputShapeException)


class Launches(TorchDispatchMode):
    """Collects the operations on the GPU, without views. Raises AssertionError for a copy that waits for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        if any(isinstance(value, torch.Tensor) and value.is_cuda for value in args):
            is_on_host = isinstance(result, torch.Tensor) and not result.is_cuda
            if is_on_host and not options.get("non_blocking"):
                raise AssertionError(f"the host waits for the GPU in {func}")
            if (name := str(func).removeprefix("aten.").rpartition(".")[0]) not in VIEWS:
                self.names.append(name)
        return result


def launched(name: str, monkeypatch: pytest.MonkeyPatch, num_sequences: int = 3) -> tuple[list[str], list[str]]:
    """The operations of a batch, and those of one layer, without torch.compile."""
    monkeypatch.setattr(varlen, "_capability", lambda device: (9, 0))
    facts = facts_of(read_spec(resolve(str(NAMED[name].folder))))
    batch = Batch.pack([Tokens(*np.zeros((2, 7), np.int32)) for _ in range(num_sequences)])
    host = flatten(batch)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        with torch.device("cuda"):
            model = Model(facts, Kernels(torch.bfloat16))
        for module in model.modules():  # weights of linear layers are on no device yet, and some buffers on the host
            for tensors in (module._parameters, module._buffers):
                found = {key: tensor for key, tensor in tensors.items() if tensor is not None}
                tensors.update({key: torch.empty_like(tensor, device="cuda") for key, tensor in found.items()})
        flat = torch.empty_like(host, device="cuda")
        sequences = Sequences.of(flat, batch.num_tokens, batch.lengths.tolist(), batch.max_len)
        with Launches() as whole:
            model.rows(sequences)
        layers = model.transformer.layers
        width = layers[0].mlp_norm.weight.shape[0]
        hidden = torch.empty(batch.num_tokens, width, device="cuda").bfloat16()
        with Launches() as one:
            layers[-1](hidden, sequences)
    return whole.names, one.names


@pytest.mark.parametrize(
    ("name", "count"),
    # 4 matmuls and attention; the others become 3 or 4 kernels with torch.compile (test_compile.py)
    [("bert-cls-normalize", 10), ("modernbert-plain-masked-lm", 21), ("qwen3-embedding", 23)],
)
def test_the_host_never_waits_and_the_number_of_operations_is_fixed(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, layer = launched(name, monkeypatch)
    assert len(layer) == count, layer
    assert launched(name, monkeypatch, num_sequences=30) == (whole, layer)


@pytest.mark.parametrize("wait", ["item", "cpu", "nonzero", "mask"])
def test_a_wait_for_the_gpu_is_noticed(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(mode: str, x: Any, sequences: Sequences) -> Any:
        return x[x > 0] if wait == "mask" else getattr(x.sum() if wait == "item" else x, wait)()

    monkeypatch.setattr("bei_core.engines.torch.models.heads.pool", pool)
    with pytest.raises((AssertionError, *WAITS)):
        launched("bert-cls-normalize", monkeypatch)
