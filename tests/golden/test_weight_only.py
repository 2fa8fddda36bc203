"""Engines with weights in 8 or 4 bits, of tiny checkpoints of several families and kinds, and of MiniLM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from openvino import Core, Model, Output, Type
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.build import plan_build
from bei_core.engines.calibration import calibration_batches, encode, outputs
from bei_core.engines.open import Opened, build_engine, load, open_engine
from bei_core.engines.openvino import build
from bei_core.engines.openvino.engine import MODEL, OpenVinoEngine
from bei_core.engines.openvino.graph import build_graph
from bei_core.engines.openvino.quantize import parts
from bei_core.engines.openvino.quantize.graph import linear_matmuls
from bei_core.engines.openvino.quantize.parts import reference_rows
from bei_core.engines.openvino.quantize.smoothquant import observe
from bei_core.engines.openvino.quantize.weights import quantize_weights
from bei_core.engines.quality import measure
from bei_core.errors import ConfigError, QualityError
from bei_core.models.kind import Kind
from bei_core.models.spec import read_spec
from bei_core.tasks import Rows, Tokens
from tests.golden.cases import CASES, GOLDEN, GROUP_CASES, load_minilm
from tests.golden.test_int8 import LOW, settings, tokens_of
from tests.golden.texts import mixed_texts
from tests.golden.tolerance import F32, compare

TYPES = ("int8_weight_only", "fp4")
NAMES = ("xlmr-rerank-f16", "modernbert-ner", "splade-bert", "gemma2-multilingual", "qwen3-yes-no-tied")

# 4 bits of random weights are far from f32; a transposed matrix or a wrong order of the bits would be near 0.
BARS = {
    "int8_weight_only": LOW,
    "fp4": {"quality_mean_cosine": 0.8, "quality_top_label_agreement": 0.5, "quality_rank_correlation": 0.6},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "own.txt"
    path.write_text("\n".join(text.replace("\n", " ")[:100] for text in mixed_texts()[:48]))
    return path


@pytest.fixture(scope="module")
def built(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Opened]:
    """Builds each engine once."""
    root, known = tmp_path_factory.mktemp("engines"), dict[str, Opened]()

    def make(name: str, kind: str) -> Opened:
        key = f"{name}-{kind}"
        if key not in known:
            asked = settings(GOLDEN / name, texts, quantization_type=kind, **BARS[kind])
            known[key] = load(build_engine(asked, root / key))
        return known[key]

    return make


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_stored_in_few_bits_and_the_matmuls_are_not_int8(
    name: str, kind: str, built: Callable[[str, str], Opened]
) -> None:
    opened = built(name, kind)
    assert opened.manifest.precision == ("int8_weight_only" if kind == "int8_weight_only" else "int4_weight_only")
    assert opened.manifest.quality is not None
    assert opened.engine.info.precision in {"f32", "bf16"}
    checkpoint = resolve(str(GOLDEN / name))
    count = len(linear_matmuls(build_graph(read_spec(checkpoint), checkpoint)))
    graph = Core().read_model(opened.tokenizer.parent / MODEL)
    stored = Counter(node.get_element_type() for node in graph.get_ops() if node.get_type_name() == "Constant")
    assert stored[Type.i8 if kind == "int8_weight_only" else Type.i4] > 0
    assert stored[Type.i8] + stored[Type.i4] <= count


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_text_gets_the_same_row_alone_and_in_a_batch(
    name: str, kind: str, built: Callable[[str, str], Opened]
) -> None:
    opened = built(name, kind)
    engine = opened.engine
    if engine.info.precision != "f32":  # of bf16, rounding would be all the difference
        engine = OpenVinoEngine(opened.tokenizer.parent / MODEL, opened.spec, "f32")
    items = tokens_of(opened)[:8]
    together, alone = outputs(engine, [Batch.pack(items)]), outputs(engine, [Batch.pack([item]) for item in items])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["bert-cls-normalize", "gemma2-multilingual"])
def test_in_f32_only_weights_are_rounded(name: str, bits: int) -> None:
    """On a processor with dot products of int8, the plugin rounds the layers' inputs to 8 bits, too, by default."""
    case = next(case for case in (*CASES, *GROUP_CASES) if case.name == name)
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    graph = build_graph(spec, checkpoint)
    matmuls, batch = linear_matmuls(graph), Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids])
    quantize_weights(graph, bits, mlp_only=False)
    rows = OpenVinoEngine(graph, spec, "f32").forward(batch)
    for matmul in matmuls:
        matmul.input(1).replace_source_output(op.constant(value_of(matmul.input_value(1))).output(0))
    compare(rows, OpenVinoEngine(graph, spec, "f32").forward(batch), F32)


def value_of(output: Output) -> Rows:
    """The value of an output that depends on constants only."""
    compiled = Core().compile_model(Model([op.result(output)], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0])


def test_only_layers_of_the_mlp_are_in_4_bits_if_asked(texts: Path, tmp_path: Path) -> None:
    folder, engine = GOLDEN / "qwen3-yes-no-tied", tmp_path / "engine"
    asked = settings(folder, texts, quantization_type="fp4_mlp_only", **BARS["fp4"])
    graph = Core().read_model(build_engine(asked, engine) / MODEL)
    checkpoint = resolve(str(folder))
    original = build_graph(read_spec(checkpoint), checkpoint)
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    num_in_4_bits = sum(node.get_element_type() == Type.i4 for node in constants)
    assert num_in_4_bits == len(linear_matmuls(original, mlp_only=True)) < len(linear_matmuls(original))
    with pytest.raises(ConfigError, match=r"is quantised in the feed-forward layers only; build it again for .* fp4"):
        open_engine(Settings.load({"model_id": str(engine), "quantization_type": "fp4", **BARS["fp4"]}, {}))


def test_the_gate_refuses_an_engine_below_the_threshold(texts: Path, tmp_path: Path) -> None:
    asked = settings(GOLDEN / "gemma2-multilingual", texts, quantization_type="fp4", quality_mean_cosine=1.0)
    with pytest.raises(QualityError, match=r"mean cosine 0\.\d+ .*int8_weight_only.*quality_mean_cosine"):
        build_engine(asked, tmp_path / "engine")


def test_an_engine_is_not_served_as_another_quantisation(built: Callable[[str, str], Opened]) -> None:
    folder = str(built("gemma2-multilingual", "fp4").tokenizer.parent)
    low = {"model_id": folder, **BARS["fp4"]}
    for kind in ("int4_weight_only", "fp4_kv", None):
        open_engine(Settings.load({**low, "quantization_type": kind}, {})).close()
    for kind in ("int8_weight_only", "fp8"):
        with pytest.raises(
            ConfigError, match=f"has weights in int4_weight_only; build it again for quantization_type {kind}"
        ):
            open_engine(Settings.load({**low, "quantization_type": kind}, {}))
    with pytest.raises(ConfigError, match=r"is quantised in all layers; build it again for .* fp4_mlp_only"):
        open_engine(Settings.load({**low, "quantization_type": "fp4_mlp_only"}, {}))


def test_the_names_of_4_bits_give_one_engine(texts: Path) -> None:
    checkpoint = resolve(str(GOLDEN / "gemma2-multilingual"))

    def address(kind: str) -> str:
        asked = settings(checkpoint.folder, texts, quantization_type=kind)
        return plan_build(build, checkpoint, read_spec(checkpoint), asked).manifest.artifact

    kinds = ("fp8", "int8_weight_only", "fp4", "fp4_mlp_only")
    assert len({address(kind) for kind in kinds}) == len(kinds)
    assert address("fp4") == address("fp4_kv") == address("int4_weight_only")


def test_minilm_in_8_bits_is_nearly_f32_with_its_embeddings_in_8_bits(
    minilm: Checkpoint, texts: Path, tmp_path: Path
) -> None:
    folder = build_engine(settings(minilm.folder, texts, quantization_type="int8_weight_only"), tmp_path / "engine")
    assert (folder / "model.bin").stat().st_size < 0.27 * (minilm.folder / "model.safetensors").stat().st_size
    reference = load_minilm()
    items = [Tokens(ids, np.zeros_like(ids)) for ids in reference.ids[:100]]
    found = outputs(load(folder).engine, calibration_batches(items))
    quality = measure(reference.vectors[:100], found, Kind.EMBEDDING)
    assert quality.mean_cosine > 0.999
    assert quality.min_cosine > 0.995


@pytest.mark.parametrize("name", ["modernbert-ner", "gemma2-multilingual", "xlmr-rerank-f16"])
def test_a_graph_in_parts_gives_the_rows_and_statistics_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = resolve(str(GOLDEN / name))
    spec, graph = read_spec(checkpoint), build_graph(read_spec(checkpoint), checkpoint)
    items = encode(mixed_texts()[:20], spec, checkpoint.folder / "tokenizer.json", 64)
    batches = calibration_batches(items, 64)
    whole, seen = reference_rows(graph, batches), observe(graph, linear_matmuls(graph), batches)
    np.testing.assert_allclose(whole, outputs(OpenVinoEngine(graph.clone(), spec, "f32"), batches), atol=1e-5)
    monkeypatch.setattr(parts, "_MAX_PART_BYTES", 20_000)
    assert len(parts._divide(graph)[0]) > 3
    monkeypatch.setattr(parts, "_MIN_SHARE", 1 / 100)  # the statistics of an activation are computed where it is
    np.testing.assert_allclose(reference_rows(graph, batches), whole, atol=1e-5)
    for one, other in zip(seen, observe(graph, linear_matmuls(graph), batches), strict=True):
        for part in ("lows", "highs", "sample"):
            np.testing.assert_allclose(getattr(one, part), getattr(other, part), atol=1e-4)
