"""A sparse encoder of Alibaba's class (opensearch-neural-sparse-encoding-doc-v3-gte), whose head transformers lacks."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.models.kind import Kind
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import GOLDEN
from tests.golden.engines import built

pytestmark = pytest.mark.usefixtures("compiled_once")

IDS = [2, 17, 30, 3]
PACKAGE = "sentence_transformers.sparse_encoder.models"


def test_the_head_is_that_of_the_published_code(tmp_path: Path) -> None:
    """`new-impl`, class NewLMPredictionHead: dense, activation, norm, and the word embeddings with a bias."""
    plain = shutil.copytree(GOLDEN / "gte-en-plain", tmp_path / "plain")
    batch = Batch.pack([Tokens(np.array(IDS, np.int32), np.zeros(len(IDS), np.int32))])
    checkpoint = resolve(str(plain))
    hidden = built(checkpoint, read_spec(checkpoint), tmp_path / "hidden").engine.forward_tokens(batch)[1]

    stored, random = checkpoint.tensors(), np.random.default_rng(3)
    words = stored.f32("embeddings.word_embeddings.weight")
    count, width = words.shape
    shapes = {
        "dense.weight": (width, width),
        "dense.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "decoder.bias": (count,),
    }
    head = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    sparse = shutil.copytree(plain, tmp_path / "sparse")
    tensors = {f"new.{name}": stored.f32(name) for name in stored}
    save_file(tensors | {f"lm_head.{name}": tensor for name, tensor in head.items()}, sparse / "model.safetensors")
    config = json.loads((sparse / "config.json").read_text())
    (sparse / "config.json").write_text(json.dumps({**config, "architectures": ["NewForMaskedLM"]}))
    modules = [("MLMTransformer", ""), ("SpladePooling", "1_SpladePooling")]
    entries = [{"name": name, "path": path, "type": f"{PACKAGE}.{name}"} for name, path in modules]
    (sparse / "modules.json").write_text(json.dumps(entries))
    (sparse / "1_SpladePooling").mkdir()
    (sparse / "1_SpladePooling/config.json").write_text(json.dumps({"activation_function": "log1p_relu"}))

    x = hidden @ head["dense.weight"].T + head["dense.bias"]
    x *= (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) * head["norm.weight"] + head["norm.bias"]
    logits = (x @ words.T + head["decoder.bias"]).max(0)
    checkpoint = resolve(str(sparse))
    spec = read_spec(checkpoint)
    assert spec.kind is Kind.SPARSE
    found = built(checkpoint, spec, tmp_path / "engine").engine.forward(batch)
    np.testing.assert_allclose(found[0], np.log1p(np.log1p(np.maximum(logits, 0))), atol=1e-4)
