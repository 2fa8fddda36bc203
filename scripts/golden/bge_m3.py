"""Computes FlagEmbedding's outputs for the tiny bge-m3: dense, sparse, ColBERT vectors, in f32, one text at a time.

The formulas are those of FlagEmbedding (commit 00d6d15 of github.com/FlagOpen/FlagEmbedding):
`finetune/embedder/encoder_only/m3/modeling.py` and `inference/embedder/encoder_only/m3.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from scripts.golden.expected import Arrays, is_same
from scripts.golden.kinds import EAGER
from tests.golden.bge_m3 import COLBERT, EXPECTED, FOLDER, MAX_LENGTH, SPARSE, TEXTS

EXCLUDED = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def write() -> None:
    """Writes both linear layers and the arrays, unless they differ from the stored ones only by rounding."""
    torch.manual_seed(12)
    hidden = AutoModel.from_pretrained(FOLDER, local_files_only=True).config.hidden_size
    sparse, colbert = nn.Linear(hidden, 1).half(), nn.Linear(hidden, hidden).half()
    arrays = compute(sparse, colbert)
    if not EXPECTED.is_file() or not is_same(arrays, load_file(EXPECTED)):
        torch.save(sparse.state_dict(), SPARSE)
        torch.save(colbert.state_dict(), COLBERT)
        save_file(arrays, EXPECTED)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def compute(sparse: nn.Linear, colbert: nn.Linear) -> Arrays:
    """Returns token ids, dense vectors, terms with their weights, and ColBERT vectors, joined over all texts."""
    model = AutoModel.from_pretrained(FOLDER, local_files_only=True, **EAGER).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    found: dict[str, list[Any]] = {name: [] for name in ("ids", "dense", "terms", "weights", "colbert")}
    for text in TEXTS:
        features = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        hidden, ids = model(**features).last_hidden_state[0], features["input_ids"][0]
        weights = term_weights(ids, torch.relu(linear(sparse, hidden))[:, 0], tokenizer)
        found["ids"].append(ids.numpy().astype(np.int32))
        found["dense"].append(nn.functional.normalize(hidden[:1], dim=-1).numpy())
        found["terms"].append(np.array(list(weights), np.int32))
        found["weights"].append(np.array(list(weights.values()), np.float32))
        found["colbert"].append(nn.functional.normalize(linear(colbert, hidden[1:]), dim=-1).numpy())
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    arrays |= {f"{name}_counts": np.array([*map(len, found[name])], np.int32) for name in ("ids", "terms")}
    return arrays


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Returns the output of a linear layer with f16 weights, computed in f32."""
    return nn.functional.linear(x, layer.weight.float(), layer.bias.float())


def term_weights(ids: Tensor, weights: Tensor, tokenizer: Any) -> dict[int, float]:  # noqa: ANN401
    """Returns the largest weight of each token id, sorted by id, without special tokens and weights <= 0."""
    excluded = {getattr(tokenizer, name) for name in EXCLUDED}
    found: dict[int, float] = {}
    for token, weight in sorted(zip(ids.tolist(), weights.tolist(), strict=True)):
        if token not in excluded and weight > 0:
            found[token] = max(weight, found.get(token, 0.0))
    return found
