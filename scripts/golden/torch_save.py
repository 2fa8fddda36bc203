"""A file of weights that torch.save wrote, with every kind of tensor that a checkpoint may have."""

from __future__ import annotations

from collections import OrderedDict

import torch

from tests.golden.checkpoints import DATA

PATH = DATA / "torch_save" / "pytorch_model.bin"


def write() -> None:
    """Writes the file unless it exists."""
    if not PATH.is_file():
        PATH.parent.mkdir(exist_ok=True)
        torch.save(state(), PATH)


def state() -> OrderedDict[str, torch.Tensor]:
    """Returns tensors with a storage of their own, with a shared storage, with a part of one, and transposed."""
    table, part = torch.arange(12, dtype=torch.float32).reshape(4, 3), torch.arange(20, dtype=torch.bfloat16)
    found: OrderedDict[str, torch.Tensor] = OrderedDict(
        {
            "embeddings.position_ids": torch.arange(5).expand((1, -1)),
            "embeddings.weight": table,
            "decoder.weight": table,
            "dense.weight": torch.arange(6, dtype=torch.float32).reshape(3, 2).t(),
            "part.weight": part[4:10].view(2, 3),
            "part.bias": part[10:],
            "permuted": torch.arange(24, dtype=torch.float16).reshape(2, 3, 4).permute(2, 0, 1),
            "scale": torch.tensor(7.0),
        }
    )
    found._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined] # as Module.state_dict does
    return found
