"""Quantisation to fp8 of each family's tiny checkpoints: the loaded engines against modelopt's own simulation."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.calibration import quantization_of, read_samples
from bei_core.engines.open import Opened
from bei_core.engines.quality import bar_of, measure
from bei_core.engines.tensorrt_llm import build, limits
from bei_core.engines.torch import quantize
from bei_core.engines.torch.engine import TorchEngine
from bei_core.engines.torch.folder import CONFIG, facts_of, read_facts
from bei_core.engines.torch.kernels.torch import Linear
from bei_core.engines.torch.loading import load_folder
from bei_core.errors import ConfigError, EngineUnavailableError, QualityError
from bei_core.models.families import family_name
from bei_core.models.kind import Kind
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.tasks import Rows, Tokens
from tests.golden.cases import CASES, CLASSIFICATION_CASES, GROUP_CASES, GROUP_CLASSIFICATION_CASES, Case
from tests.golden.texts import mixed_texts
from tests.gpu_path.conftest import Builder
from tests.gpu_path.modelopt_engine import Simulated
from tests.gpu_path.table import TABLE

# modelopt and torch give warnings about their own code during the export.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

EVERY: tuple[Any, ...] = (*CASES, *GROUP_CASES, *CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)
NAMED = {case.name: case for case in EVERY}
# One embedder and one classifier of each family, with heads, Dense modules and grouped queries among them.
EMBEDDERS = (
    "bert-modern-dense-gelu",
    "roberta-mean-normalize",
    "xlmr-max-dense-identity-bf16",
    "distilbert-mean",
    "llama-3-rope-last",
    "mistral-wide-heads-bf16-sharded",
    "qwen2-tied-lm-last",
    "qwen2-gte-both-ways",
    "qwen3-embedding",
    "gemma2-multilingual",
    "embedding-gemma",
)
CLASSIFIERS = (
    "bert-rerank-pad7",
    "roberta-emotions-pad5-f16",
    "xlmr-sentiment-bf16",
    "llama-reward",
    "mistral-topics-no-pad",
    "qwen2-rerank-seq-cls",
    "qwen3-rerank-seq-cls",
    "gemma2-two-labels",
)
# The golden checkpoints have large weights, so that mistakes are visible; 8-bit rounding errors are large there, too.
NO_BAR = {f"quality_{name}": 0.0 for name in ("mean_cosine", "top_label_agreement", "rank_correlation")}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of calibration texts."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(text.replace("\n", " ") for text in mixed_texts()), encoding="utf-8")
    return path


def settings(texts: Path, kind: str = "fp8", **more: object) -> dict[str, object]:
    return {"quantization_type": kind, "calib_dataset": str(texts), "calib_size": 64, **NO_BAR, **more}


def tokens_of(case: Any) -> list[Tokens]:
    types = getattr(case, "type_ids", None) or [np.zeros_like(ids) for ids in case.ids]
    return [Tokens(*both) for both in zip(case.ids, types, strict=True)]


class Made(TorchDispatchMode):
    """Records (dtype, shape) of every tensor that is made with memory while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors = set[tuple[torch.dtype, torch.Size]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_meta:
            self.tensors.add((result.dtype, result.shape))
        return result


def tensors_of(opened: Opened) -> dict[str, str]:
    """The dtype of each tensor of an engine folder."""
    tensors = resolve(str(opened.tokenizer.parent)).tensors()
    return {name: tensors.dtype(name) for name in tensors.names()}


def test_an_fp8_model_is_loaded_without_the_memory_of_its_weights_in_bf16(texts: Path, built: Builder) -> None:
    checkpoint = resolve(str(NAMED["qwen3-embedding"].folder))
    opened = built(checkpoint, read_spec(checkpoint), **settings(texts, engine="torch"))
    with Made() as made:
        model = load_folder(opened.tokenizer.parent, "fp8", torch.device("cpu"))
    weights = {layer.weight.shape for layer in model.modules() if isinstance(layer, Linear)}
    assert {(torch.float8_e4m3fn, shape) for shape in weights} <= made.tensors
    assert not {(torch.bfloat16, shape) for shape in weights} & made.tensors


@pytest.mark.parametrize("engine", ["torch", "tensorrt_llm"])
@pytest.mark.parametrize("name", [*EMBEDDERS, *CLASSIFIERS])
def test_the_fp8_engine_is_as_near_to_f32_as_modelopts_simulation(
    name: str, engine: str, texts: Path, built: Builder
) -> None:
    case = NAMED[name]
    tokens = tokens_of(case)
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    opened = built(checkpoint, spec, **settings(texts, engine=engine))
    device = "gpu" if engine == "tensorrt_llm" else "cpu"
    assert (opened.engine.info.compute_type, opened.manifest.precision) == (f"{device}+fp8", "fp8")
    simulated = simulate(checkpoint, spec, texts, opened.tokenizer)
    reference = case.raw if isinstance(case, Case) else case.logits
    rows = opened.engine.forward(Batch.pack(tokens))
    # 8-bit rounding amplifies small differences: the engine and the simulation are not close, but as close to f32.
    assert distance(rows, reference) <= 1.25 * distance(simulated.rows(tokens), reference)
    if isinstance(case, Case):
        cosine = measure(reference, rows, Kind.EMBEDDING).mean_cosine
        TABLE.note(f"{engine}, {family_name(spec.architecture)}", "fp8", cosine)


def simulate(checkpoint: Checkpoint, spec: ModelSpec, texts: Path, tokenizer: Path) -> Simulated:
    """The checkpoint quantised by modelopt, with the same texts."""
    given = Settings.load({"engine": "torch", **settings(texts)}, {"HOME": "/nonexistent"})
    quantization = quantization_of(given)
    assert quantization is not None
    samples = read_samples(quantization.calibration, spec)
    scheme = quantize.Scheme(quantization.calibration, samples, bar_of(given))
    return Simulated(checkpoint, facts_of(spec, ("attention", "mlp")), scheme, tokenizer)


@pytest.mark.parametrize("name", ["roberta-mean-normalize", "llama-3-rope-last", "bert-modern-dense-gelu"])
def test_scales_are_those_of_modelopt_and_its_folders_load(
    name: str, texts: Path, built: Builder, tmp_path: Path
) -> None:
    case = NAMED[name]
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    ours = built(checkpoint, spec, **settings(texts, engine="torch"))
    theirs = tmp_path / "modelopt"
    theirs.mkdir()
    simulate(checkpoint, spec, texts, ours.tokenizer).write(theirs)
    known, made = (resolve(str(folder)).tensors() for folder in (theirs, ours.tokenizer.parent))
    scales = [tensor for tensor in known.names() if tensor.endswith("_scale")]
    assert sorted(scales) == sorted(tensor for tensor in made.names() if tensor.endswith("_scale"))
    for tensor in scales:
        np.testing.assert_allclose(made.f32(tensor), known.f32(tensor), rtol=2e-3, err_msg=tensor)
    engine = TorchEngine(load_folder(theirs, "fp8", torch.device("cpu")), spec, "fp8")
    batch, reference = Batch.pack(tokens_of(case)), case.raw
    rows, expected = engine.forward(batch), ours.engine.forward(batch)
    assert distance(rows, reference) <= 1.25 * distance(expected, reference)


def test_layers_of_other_sizes_than_multiples_of_16_stay_in_bf16_and_the_manifest_names_them(
    texts: Path, built: Builder
) -> None:
    """Of this model, hidden size 36 is none, and 48 is; so the attention and both layers of the MLP stay."""
    checkpoint = resolve(str(NAMED["xlmr-max-dense-identity-bf16"].folder))
    opened = built(checkpoint, read_spec(checkpoint), **settings(texts, engine="torch"))
    assert "F8_E4M3" not in tensors_of(opened).values()
    layers = ("attention.qkv_proj", "attention.o_proj", "mlp.up_proj", "mlp.down_proj")
    expected = ", ".join(f"transformer.layers.*.{layer}" for layer in layers)
    assert opened.manifest.built_with == {"torch": str(torch.__version__), "layers in bf16": expected}


@pytest.mark.parametrize(
    "name",
    [
        *("modernbert-plain-masked-lm", "nomic-mean-bf16", "gte-en-plain", "deberta-v3-plain-prefix", "voyage-4-nano"),
        *("jina-code-qk-norm", "sentence-t5-dense-f16", "nomic-v2-moe"),
    ],
)
def test_families_that_modelopt_does_not_know_are_quantised_too(name: str, texts: Path, built: Builder) -> None:
    case = NAMED[name]
    checkpoint = resolve(str(case.folder))
    opened = built(checkpoint, read_spec(checkpoint), **settings(texts, engine="torch"))
    assert "F8_E4M3" in tensors_of(opened).values()
    rows = opened.engine.forward(Batch.pack(tokens_of(case)))
    cosine = measure(case.raw, rows, Kind.EMBEDDING).mean_cosine
    assert cosine > 0.97
    TABLE.note(f"torch, {family_name(case.architecture)}", "fp8", cosine)


def test_fp4_is_refused_by_name(texts: Path, built: Builder) -> None:
    checkpoint = resolve(str(NAMED["qwen3-embedding"].folder))
    with pytest.raises(EngineUnavailableError, match="engines for GPUs are not built in fp4_mlp_only; use fp8"):
        built(checkpoint, read_spec(checkpoint), **settings(texts, "fp4_mlp_only"))


def distance(rows: Rows, reference: Rows) -> float:
    """Norm of the difference of all rows, divided by the norm of the reference's deviation from its mean row."""
    return float(np.linalg.norm(rows - reference) / np.linalg.norm(reference - reference.mean(0)))


@pytest.mark.parametrize("name", ["bert-cross-encoder-modern", "gemma2-multilingual", "qwen3-embedding"])
def test_only_linear_layers_are_quantised_to_8_bits(name: str, texts: Path, built: Builder) -> None:
    case = NAMED[name]
    checkpoint = resolve(str(case.folder))
    opened = built(checkpoint, read_spec(checkpoint), **settings(texts))
    dtypes = tensors_of(opened)
    layers = int(opened.spec.config["num_hidden_layers"])
    quantized = [tensor for tensor, dtype in dtypes.items() if dtype == "F8_E4M3"]
    assert len(quantized) == layers * (7 if "self_attn" in " ".join(dtypes) else 6)
    assert all(dtypes[f"{tensor.removesuffix('weight')}{scale}"] == "F32" for tensor in quantized for scale in SCALES)
    assert {dtype for tensor, dtype in dtypes.items() if tensor.startswith("bei.")} <= {"F32"}
    assert {dtypes[tensor] for tensor in dtypes if "norm" in tensor.lower() or "embed" in tensor} == {"BF16"}
    assert not [tensor for tensor in quantized if "pooler" in tensor or "classifier" in tensor or "score" in tensor]


SCALES = ("weight_scale", "input_scale")


def test_fp8_mlp_only_leaves_attention_as_it_is(texts: Path, built: Builder) -> None:
    checkpoint = resolve(str(NAMED["qwen3-embedding"].folder))
    opened = built(checkpoint, read_spec(checkpoint), **settings(texts, "fp8_mlp_only"))
    assert read_facts(opened.tokenizer.parent).quantized == ("mlp",)
    dtypes = tensors_of(opened)
    assert {dtypes[tensor] for tensor in dtypes if "self_attn" in tensor} == {"BF16"}
    assert {dtypes[tensor] for tensor in dtypes if "mlp" in tensor and tensor.endswith("weight")} == {"F8_E4M3"}


def test_the_folder_has_the_quantisation_configs_of_tensorrt_llm_and_transformers(texts: Path, built: Builder) -> None:
    case = NAMED["bert-modern-dense-gelu"]
    checkpoint = resolve(str(case.folder))
    folder = built(checkpoint, read_spec(checkpoint), **settings(texts)).tokenizer.parent
    assert json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["quant_algo"] == "FP8"
    config = json.loads((folder / CONFIG).read_text())
    assert config["architectures"] == ["BeiBertEmbedding"]
    assert config["quantization_config"]["quant_method"] == "modelopt"
    for name in ("modules.json", "tokenizer_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"):
        assert (folder / name).read_bytes() == (case.folder / name).read_bytes()
    assert not [path for path in folder.iterdir() if path.name.startswith("tmp")]


def test_a_model_below_the_quality_threshold_is_refused_with_its_figures(texts: Path, built: Builder) -> None:
    checkpoint = resolve(str(NAMED["gemma2-multilingual"].folder))
    with pytest.raises(QualityError, match=r"mean cosine 0\.\d+ .* required is mean cosine at least 1"):
        built(checkpoint, read_spec(checkpoint), **settings(texts, quality_mean_cosine=1.0))


def test_a_build_gives_no_warnings_of_torch(texts: Path, built: Builder) -> None:
    """Torch gives most of its warnings once in a process, unless it is told to give them always."""
    checkpoint = resolve(str(NAMED["roberta-mean-normalize"].folder))
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            built(checkpoint, read_spec(checkpoint), **settings(texts, engine="torch"))
    finally:
        torch.set_warn_always(False)


def test_the_manifest_has_the_quality_and_its_thresholds(texts: Path, built: Builder) -> None:
    checkpoint = resolve(str(NAMED["roberta-mean-normalize"].folder))
    quality = built(checkpoint, read_spec(checkpoint), **settings(texts, quality_mean_cosine=0.9)).manifest.quality
    assert quality is not None
    assert quality.bar is not None
    assert quality.mean_cosine >= quality.bar.mean_cosine == 0.9
    assert quality.num_rows == len(mixed_texts()) // 4


def address(checkpoint: Checkpoint, spec: ModelSpec, **given: object) -> object:
    """The address of a plan's engine."""
    plan = build.plan(checkpoint, spec, Settings.load({"engine": "tensorrt_llm", **given}, {"HOME": "/nonexistent"}))
    return plan.precision, json.loads(json.dumps(plan.artifact, default=str))


def test_only_settings_that_change_the_numbers_change_the_address(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEAD_SIZES", range(1, 257))  # the heads of the golden checkpoints are tiny
    checkpoint = resolve(str(NAMED["qwen3-embedding"].folder))
    spec = read_spec(checkpoint)
    plain = address(checkpoint, spec, **settings(texts))
    moved = tmp_path / "moved.txt"
    moved.write_bytes(texts.read_bytes())
    assert plain == address(checkpoint, spec, **settings(moved))
    assert plain == address(checkpoint, spec, **settings(texts, "fp8_kv"))  # encoding has no KV cache
    others = (
        address(checkpoint, spec, **settings(texts, "fp8_mlp_only")),
        address(checkpoint, spec, **settings(texts, calib_size=63)),
        address(checkpoint, spec),
        address(checkpoint, spec, dtype="float16"),
    )
    assert len({json.dumps(each) for each in (plain, *others)}) == 5


def test_unreadable_calibration_texts_are_reported_before_the_build(built: Builder) -> None:
    checkpoint = resolve(str(NAMED["qwen3-embedding"].folder))
    with pytest.raises(ConfigError, match=r"/nowhere\.txt cannot be read"):
        built(checkpoint, read_spec(checkpoint), **settings(Path("/nowhere.txt")))


def test_the_attention_mask_follows_config_json() -> None:
    both_ways, causal = (facts_of(read_spec(resolve(str(NAMED[name].folder)))) for name in MASKED)
    assert (both_ways.mask, causal.mask) == ("full", "causal")


MASKED = ("qwen2-gte-both-ways", "qwen2-tied-lm-last")
