"""The parts of the GPU engine that need neither torch nor a GPU: folders with cast weights, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.manifest import verify
from bei_core.engines.open import build_engine, open_engine
from bei_core.engines.registry import candidates
from bei_core.engines.tensorrt_llm import build, limits
from bei_core.engines.torch.folder import facts_of, read_facts
from bei_core.engines.torch.tensorfile import Entry, write_tensors
from bei_core.errors import ConfigError, EngineUnavailableError, UnsupportedModelError
from bei_core.models.spec import read_spec
from tests.golden.cases import GOLDEN
from tests.golden.sentence import FOLDERS

QWEN = GOLDEN / "qwen3-embedding"
RERANKER = GOLDEN / "bert-rerank-pad7"


@pytest.fixture(autouse=True)
def any_head_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden checkpoints have smaller heads than TensorRT-LLM has kernels for."""
    if "head" not in request.node.name:
        monkeypatch.setattr(limits, "HEAD_SIZES", range(1, 257))


def settings(model: Path, **given: object) -> Settings:
    return Settings.load({"engine": "tensorrt_llm", "model_id": str(model), **given}, {"HOME": "/nonexistent"})


def built(model: Path, folder: Path, **given: object) -> Path:
    return build_engine(settings(model, **given), folder)


def test_a_file_is_read_by_the_format_s_own_reader(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", [Entry.f32("a", values), Entry.f32("b.c", values[0, :1])])
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert sorted(file.keys()) == ["a", "b.c"]
        assert np.array_equal(file.get_tensor("a"), values)
        assert file.metadata() == {"format": "pt"}


def test_a_folder_has_the_transformer_in_bf16_and_all_other_layers_in_f32(tmp_path: Path) -> None:
    folder = built(RERANKER, tmp_path / "engine")
    manifest = verify(folder)
    assert (manifest.engine, manifest.precision) == ("tensorrt_llm", "bf16")
    tensors = resolve(str(folder)).tensors()
    assert {tensors.dtype(name) for name in tensors if not name.startswith("bei.")} == {"BF16"}
    top = {name: tensors.dtype(name) for name in tensors if name.startswith("bei.")}
    parts = ("dense.bias", "dense.weight", "out.bias", "out.weight")
    assert top == {f"bei.{part}": "F32" for part in parts}
    before = resolve(str(RERANKER)).tensors()
    assert np.array_equal(tensors.f32("bei.out.weight"), before.f32("classifier.weight"))
    word = next(name for name in before if name.endswith("word_embeddings.weight"))
    assert np.allclose(tensors.f32(word), before.f32(word), rtol=2**-8)


def test_config_names_our_class_and_holds_the_whole_spec(tmp_path: Path) -> None:
    folder = built(QWEN, tmp_path / "engine")
    spec = read_spec(resolve(str(QWEN)))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BeiQwen3Embedding"]
    assert (config["model_type"], config["torch_dtype"]) == ("qwen3", "bfloat16")
    assert (config["num_key_value_heads"], config["head_dim"]) == (2, 16)
    facts = read_facts(folder)
    assert (facts.spec, facts.mask, facts.quantized) == (spec, "causal", ())


def test_a_folder_of_an_older_version_has_the_values_of_its_class(tmp_path: Path) -> None:
    folder = built(QWEN, tmp_path / "engine")
    facts = read_facts(folder)
    content = json.loads((folder / "config.json").read_bytes())
    for key in ("rms_norm_eps", "sliding_window"):
        content["bei"]["spec"]["config"].pop(key, None)
    (folder / "config.json").write_text(json.dumps(content))
    config = read_facts(folder).spec.config
    assert (config["rms_norm_eps"], config["sliding_window"]) == (1e-6, 4096)
    assert read_facts(folder).spec.architecture == facts.spec.architecture


def test_a_window_or_a_cap_needs_attention_of_our_own() -> None:
    names = ("mistral-window-last", "gemma2-multilingual", "qwen3-embedding")
    facts = [facts_of(read_spec(resolve(str(GOLDEN / name)))) for name in names]
    assert [limits.needs_loop(each) for each in facts] == [True, True, False]


@pytest.mark.parametrize(
    ("model", "what"),
    [("mpnet-mean-normalize", "MPNetModel"), ("bert-ner", "a model of kind token-classifier")],
)
def test_a_model_that_the_gpu_engine_does_not_run_is_refused_with_an_alternative(
    model: str, what: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"does not run {what}.*--engine openvino"):
        built(GOLDEN / model, tmp_path / "engine")


def test_a_projection_after_the_decoder_is_in_the_folder(tmp_path: Path) -> None:
    folder = built(GOLDEN / "voyage-4-nano", tmp_path / "engine", dtype="float32")
    before = resolve(str(GOLDEN / "voyage-4-nano")).tensors()
    assert np.array_equal(resolve(str(folder)).tensors().f32("linear.weight"), before.f32("linear.weight"))


_MISSING = r"does not run .*; it runs Bert, .*--engine openvino"


@pytest.mark.parametrize("model", ["nomic-v2-moe", "mt5-silu"])
def test_what_our_classes_do_not_have_is_refused_at_the_build(model: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=_MISSING):
        built(GOLDEN / model, tmp_path / "engine")


@pytest.mark.parametrize("engine", ["torch", "tensorrt_llm"])
def test_static_embeddings_are_refused_at_the_build(engine: str, tmp_path: Path) -> None:
    model = FOLDERS["model2vec"].write(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=_MISSING):
        built(model, tmp_path / "engine", engine=engine)


@pytest.mark.parametrize("engine", ["torch", "tensorrt_llm"])
def test_fp8_without_torch_names_the_command_that_installs_it(engine: str, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"fp8 needs torch .*pip install 'bei-core\[torch\]'"):
        built(QWEN, tmp_path / "engine", engine=engine, quantization_type="fp8")
    assert not (tmp_path / "engine").exists()


def test_to_build_needs_no_package_and_to_run_does(tmp_path: Path) -> None:
    assert candidates("tensorrt_llm", to_run=False) == ["tensorrt_llm"]
    folder = built(QWEN, tmp_path / "engine")
    with pytest.raises(EngineUnavailableError, match="needs the package tensorrt_llm"):
        open_engine(settings(folder))
    with pytest.raises(EngineUnavailableError, match="needs the package tensorrt_llm"):
        open_engine(settings(QWEN, cache_dir=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_each_dtype_has_an_address_of_its_own(tmp_path: Path) -> None:
    given = {"cache_dir": str(tmp_path / "cache")}
    folders = [
        build_engine(settings(QWEN, dtype=dtype, **given)) for dtype in ("auto", "bfloat16", "float16", "float32")
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    with pytest.raises(ConfigError, match=r"weights in f16; build it again for float32"):
        open_engine(settings(folders[2], dtype="float32"))


def test_the_mask_is_part_of_the_address_of_a_plan() -> None:
    checkpoint = resolve(str(GOLDEN / "qwen2-gte-both-ways"))
    assert build.plan(checkpoint, read_spec(checkpoint), settings(QWEN)).artifact["mask"] == "full"


def test_heads_without_a_kernel_are_refused_by_name_before_anything_is_built(tmp_path: Path) -> None:
    """TensorRT-LLM ends the process at such a model."""
    with pytest.raises(UnsupportedModelError, match=r"Qwen3.* heads of size \d+, .* it has 32, 48, .*--engine torch"):
        built(QWEN, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
    built(QWEN, tmp_path / "engine", dtype="float32")  # its plain attention takes any size
