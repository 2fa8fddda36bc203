"""int8 engines of tiny checkpoints of every family and kind, and of MiniLM with its real weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from openvino import Core, Model
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.build import plan_build
from bei_core.engines.calibration import Calibration, calibration_batches, encode, outputs, read_samples
from bei_core.engines.open import Opened, build_engine, load, open_engine
from bei_core.engines.openvino import build, changes, engine
from bei_core.engines.openvino.engine import MODEL, OpenVinoEngine
from bei_core.engines.openvino.graph import ROWS, build_graph
from bei_core.engines.openvino.lone import with_lone_graphs
from bei_core.engines.openvino.quantize.convolution import matmuls_to_convolutions, merge_transposes
from bei_core.engines.openvino.quantize.graph import linear_matmuls, make_names_unique, quantize
from bei_core.engines.openvino.quantize.smoothquant import ALPHAS, best_scale, observe
from bei_core.engines.quality import measure
from bei_core.errors import ConfigError, EngineUnavailableError, QualityError
from bei_core.models.kind import Kind
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import GOLDEN, load_minilm
from tests.golden.test_lone import compiled, text_of
from tests.golden.texts import mixed_texts

FOLDERS = {
    name: GOLDEN / name
    for name in (
        "bert-mean-cls-list",
        "distilbert-sentiment",
        "xlmr-rerank-f16",
        "modernbert-ner",
        "deberta-v3-list-cls",
        "splade-bert",
        "colbert-v2",
        "gemma2-multilingual",
        "qwen3-yes-no-tied",
    )
}

ALWAYS = {"bert-mean-cls-list", "xlmr-rerank-f16", "modernbert-ner", "gemma2-multilingual"}
NAMES = [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.long) for name in FOLDERS]

NUM_TEXTS = 48  # of the 200: 36 to calibrate with, 12 held out

# Weights of chance make activations without outliers and scores that are nearly equal, so that bars for real models say
# little of them; what is held here is that int8 comes near f32 at all.
LOW = {"quality_mean_cosine": 0.98, "quality_top_label_agreement": 0.8, "quality_rank_correlation": 0.9}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set."""
    path = tmp_path_factory.mktemp("texts") / "own.txt"
    path.write_text("\n".join(text.replace("\n", " ")[:100] for text in mixed_texts()[:NUM_TEXTS]))
    return path


@pytest.fixture(scope="module")
def built(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Opened]:
    """Builds each case once."""
    root, known = tmp_path_factory.mktemp("int8"), dict[str, Opened]()

    def make(name: str) -> Opened:
        if name not in known:
            known[name] = load(build_engine(settings(FOLDERS[name], texts, **LOW), root / name))
        return known[name]

    return make


def settings(model: Path, texts: Path, **others: object) -> Settings:
    asked = {"model_id": str(model), "quantization_type": "fp8", "calib_dataset": str(texts)}
    return Settings.load({**asked, "cache_dir": texts.parent / "cache", **others}, {})


def tokens_of(opened: Opened) -> list[Tokens]:
    samples = read_samples(Calibration(size=24, seed=9), opened.spec)
    return encode(samples.calibration, opened.spec, opened.tokenizer, 64)


def rows_of(engine: Engine, batches: Sequence[Batch]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rows = outputs(engine, batches)
    assert np.isfinite(rows).all()
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_model_passes_a_low_bar_and_says_what_it_is(name: str, built: Callable[[str], Opened]) -> None:
    opened = built(name)
    quality = opened.manifest.quality
    assert quality is not None
    assert quality.kind == opened.spec.kind
    assert quality.bar is not None
    assert opened.manifest.precision == opened.engine.info.precision == "int8"
    assert opened.engine.info.compute_type == "cpu+int8"


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_each_text_what_it_gets_alone(name: str, built: Callable[[str], Opened]) -> None:
    opened = built(name)
    items = tokens_of(opened)
    together = rows_of(opened.engine, [Batch.pack(items)])
    alone = rows_of(opened.engine, [Batch.pack([item]) for item in items])
    # Rounding to int8 turns a last bit of f32 into a step, so this is not the tolerance of f32.
    quality = measure(alone, together, Kind.EMBEDDING)
    assert quality.mean_cosine > 0.999 or opened.spec.kind == "reranker"
    assert quality.max_abs < 0.1 * np.abs(alone).max()


@pytest.mark.parametrize("name", NAMES)
def test_only_the_linear_layers_of_the_transformer_are_quantised(name: str) -> None:
    checkpoint = resolve(str(FOLDERS[name]))
    graph = build_graph(read_spec(checkpoint), checkpoint)
    every = [node.get_friendly_name() for node in linear_matmuls(graph)]
    mlp = [node.get_friendly_name() for node in linear_matmuls(graph, mlp_only=True)]
    assert len(every) > len(mlp) > 0
    assert not [named for named in every if "classifier" in named or "linear" in named or named.startswith("MatMul")]
    assert all("attention" in named or "attn" in named for named in set(every) - set(mlp))


def test_the_gate_refuses_what_is_below_the_bar_and_leaves_its_report_alone(texts: Path, tmp_path: Path) -> None:
    asked = settings(FOLDERS["bert-mean-cls-list"], texts, quality_mean_cosine=1.0, cache_dir=tmp_path / "cache")
    with pytest.raises(QualityError, match=r"mean cosine 0\.9\d+ .*quality_mean_cosine"):
        build_engine(asked)
    assert not list((tmp_path / "cache").glob("engines/*/manifest.json"))
    [report] = (tmp_path / "cache" / "reports").iterdir()
    assert "<td>at least 1</td>" in report.read_text()


def test_an_engine_built_under_a_lower_bar_is_not_served_under_a_higher(built: Callable[[str], Opened]) -> None:
    folder = str(built("bert-mean-cls-list").tokenizer.parent)
    with pytest.raises(QualityError, match="too far from f32"):
        open_engine(Settings(model_id=folder, quality_mean_cosine=1.0))
    with pytest.raises(ConfigError, match="build it again for quantization_type no_quant"):
        open_engine(Settings(model_id=folder, quantization_type="no_quant"))
    for dtype in ("int8", "float32", "auto"):
        asked = Settings.load({"model_id": folder, "dtype": dtype, **LOW}, {})
        assert open_engine(asked).engine.info.precision == "int8"


def test_an_engine_that_is_not_quantised_is_not_served_as_one(tmp_path: Path) -> None:
    folder = build_engine(Settings(model_id=str(FOLDERS["bert-mean-cls-list"])), tmp_path / "engine")
    with pytest.raises(ConfigError, match="not quantised"):
        open_engine(Settings(model_id=str(folder), quantization_type="fp8"))
    with pytest.raises(ConfigError, match="build it again for int8"):
        open_engine(Settings(model_id=str(folder), dtype="int8"))


def test_all_that_decides_the_numbers_is_in_the_address(texts: Path, tmp_path: Path) -> None:
    def address(**others: object) -> str:
        asked = settings(FOLDERS["bert-mean-cls-list"], texts, **others)
        checkpoint = resolve(str(FOLDERS["bert-mean-cls-list"]))
        return plan_build(build, checkpoint, read_spec(checkpoint), asked)[0].artifact

    other = tmp_path / "other.txt"
    other.write_text(texts.read_text() + "\none more text")
    asked: list[dict[str, object]] = [
        {},
        {"quantization_type": "no_quant"},
        {"quantization_type": "fp8_mlp_only"},
        {"smooth_quant_alpha": 0.5},
        {"calib_size": 64},
        {"calib_max_seq_length": 64},
        {"calib_dataset": str(other)},
    ]
    assert len({address(**each) for each in asked}) == len(asked)
    assert address() == address(quantization_type="fp8_kv") == address(quality_mean_cosine=0.5)
    assert address() == address(quantization_type=None, dtype="int8")


def test_minilm_is_near_f32_on_texts_that_it_was_not_calibrated_with(
    minilm: Checkpoint, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = build_engine(settings(minilm.folder, texts), tmp_path / "engine")
    assert capfd.readouterr().out == ""  # where `bei build` says where the engine is, and nothing else may
    reference = load_minilm()
    items = [Tokens(ids, np.zeros_like(ids)) for ids in reference.ids[NUM_TEXTS:]]
    rows = rows_of(load(folder).engine, calibration_batches(items, 1024))
    quality = measure(reference.vectors[NUM_TEXTS:], rows, Kind.EMBEDDING)
    # Few texts to calibrate with, of many scripts to measure on; a real build gives 0.9977 on its own texts held out.
    assert quality.mean_cosine > 0.993
    assert quality.min_cosine > 0.92


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_give_what_matrix_multiplications_give(
    name: str, built: Callable[[str], Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = built(name)
    path = opened.tokenizer.parent / MODEL
    found = []
    for has_vnni in (True, False):
        monkeypatch.setattr(changes, "has_int8_dot_product", lambda has_vnni=has_vnni: has_vnni)
        # f32 around the linear layers, as on every processor that convolves: one without VNNI has no bf16. In bf16 the
        # two graphs also round between the layers at different places, which this does not compare.
        one = engine.OpenVinoEngine(path, opened.spec, "f32", quantised=True)
        found.append(rows_of(one, [Batch.pack(tokens_of(opened))]))
    multiplied, convolved = found
    quality = measure(multiplied, convolved, Kind.EMBEDDING)
    assert quality.min_cosine > 0.999 or opened.spec.kind == "reranker"
    assert quality.max_abs < 0.05 * np.abs(multiplied).max()


@pytest.mark.parametrize("name", ["bert-mean-cls-list", "gemma2-multilingual"])  # with fused operations, and without
def test_a_lone_text_gets_by_convolutions_what_it_gets_in_any_batch(name: str, built: Callable[[str], Opened]) -> None:
    opened = built(name)
    model = Core().read_model(opened.tokenizer.parent / MODEL)
    matmuls_to_convolutions(model)
    plain, lone = compiled(model), compiled(with_lone_graphs(model, ROWS, (8, 24)), (8, 24))
    for size in (1, 5, 8, 24):
        batch = Batch.pack([text_of(size, opened.spec.vocab_size)])
        np.testing.assert_allclose(lone.infer(batch, ROWS).rows, plain.infer(batch, ROWS).rows, rtol=1e-5, atol=1e-5)


def test_only_transposes_after_convolutions_change_for_fixed_shapes(built: Callable[[str], Opened]) -> None:
    model = Core().read_model(built("bert-mean-cls-list").tokenizer.parent / MODEL)
    matmuls_to_convolutions(model)
    model.reshape({port.any_name: [1, 8] if port.partial_shape.rank == 2 else [1] for port in model.inputs})

    def orders() -> Counter[tuple[int, ...]]:
        transposes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Transpose"]
        return Counter(tuple(map(int, node.input_value(1).get_node().get_data())) for node in transposes)

    convolutions = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "Convolution"]
    num_changed = sum("intermediate" not in name for name in convolutions)  # after that one comes another convolution
    expected = orders()
    expected[0, 3, 1, 2] -= num_changed
    expected[0, 2, 3, 1] += num_changed
    merge_transposes(model)
    assert orders() == expected


def test_a_file_that_cannot_be_loaded_is_named(built: Callable[[str], Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Model) -> None:
        raise RuntimeError("no such kernel")

    opened = built("bert-mean-cls-list")
    path = opened.tokenizer.parent / MODEL
    monkeypatch.setattr(changes, "has_int8_dot_product", lambda: False)
    monkeypatch.setattr(changes, "matmuls_to_convolutions", refuse)
    with pytest.raises(
        EngineUnavailableError,
        match=f"^OpenVINO cannot load the engine {path}: no such kernel; build the engine again$",
    ):
        engine.OpenVinoEngine(path, opened.spec, "f32", quantised=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_product_becomes_a_convolution(name: str, built: Callable[[str], Opened]) -> None:
    checkpoint = resolve(str(FOLDERS[name]))
    count = len(linear_matmuls(build_graph(read_spec(checkpoint), checkpoint)))
    model = Core().read_model(built(name).tokenizer.parent / MODEL)
    before = Counter(node.get_type_name() for node in model.get_ops())
    matmuls_to_convolutions(model)
    after = Counter(node.get_type_name() for node in model.get_ops())
    assert before["MatMul"] - after["MatMul"] == after["Convolution"] - before["Convolution"] == count


@pytest.mark.parametrize("name", ["bert-mean-cls-list", "gemma2-multilingual"])  # with biases, and without
def test_every_product_fits_16_bits_on_the_texts_and_begins_at_zero(name: str, texts: Path) -> None:
    checkpoint = resolve(str(FOLDERS[name]))
    spec = read_spec(checkpoint)
    items = encode(mixed_texts()[:24], spec, checkpoint.folder / "tokenizer.json", 64)
    graph = build_graph(spec, checkpoint)
    count = len(linear_matmuls(graph))
    seen = quantize(graph, calibration_batches(items), alpha=None, mlp_only=False)
    assert len(seen) == count
    largest = []
    for node in [node for node in graph.get_ops() if node.get_friendly_name() in seen]:
        activation, weight = (node.input_value(index).get_node() for index in (0, 1))
        low, high, begin, end = (
            float(activation.input_value(index).get_node().get_data().min()) for index in (1, 2, 3, 4)
        )
        assert begin == 0
        assert end == pytest.approx(high - low)
        of = seen.pop(node.get_friendly_name())
        codes = [np.clip(np.round((x - low) / (high - low) * 255), 0, 255) for x in (of.low, of.high)]
        rows = weight.input_value(0).get_node().input_value(0).get_node().get_data()
        assert rows.dtype == np.int8
        sums = [np.where(rows > 0, *ends) * rows.astype(float) for ends in (codes, codes[::-1])]
        assert all(np.abs(each[:, ::2] + each[:, 1::2]).max() <= 2**15 for each in sums)
        largest.append(np.abs(rows).max(1))
    assert not seen
    assert np.concatenate(largest).max() == 127 > np.concatenate(largest).min(), "some rows need room and some do not"


def test_a_layer_whose_input_is_zero_in_all_texts_gives_its_bias() -> None:
    checkpoint = resolve(str(FOLDERS["bert-mean-cls-list"]))
    spec = read_spec(checkpoint)
    graph = build_graph(spec, checkpoint)
    name = "encoder.layer.0.output.dense"
    (dead,) = [node for node in linear_matmuls(graph) if node.get_friendly_name() == name]
    zero = op.multiply(dead.input_value(0), op.constant(np.float32(0)))
    dead.input(0).replace_source_output(zero.output(0))
    batches = calibration_batches(encode(mixed_texts()[:24], spec, checkpoint.folder / "tokenizer.json", 64))
    expected = rows_of(OpenVinoEngine(graph.clone(), spec, "f32"), batches)
    quantize(graph, batches, alpha=None, mlp_only=False)
    found = rows_of(OpenVinoEngine(graph, spec, "f32", quantised=True), batches)
    assert measure(expected, found, Kind.EMBEDDING).min_cosine > 0.98


def test_smoothing_alone_changes_no_row(minilm: Checkpoint) -> None:
    spec = read_spec(minilm)
    items = encode(mixed_texts()[:24], spec, minilm.folder / "tokenizer.json", 64)
    batches = calibration_batches(items)
    plain, scaled = build_graph(spec, minilm), build_graph(spec, minilm)
    make_names_unique(scaled)
    errors: list[float] = []
    for shared in observe(scaled, linear_matmuls(scaled), batches):
        weights = shared.weights()
        scale, expected = best_scale(shared, weights, ALPHAS)
        errors += expected
        divided = op.multiply(shared.matmuls[0].input_value(0), op.constant(1 / scale))
        for matmul, weight in zip(shared.matmuls, weights, strict=True):
            matmul.input(0).replace_source_output(divided.output(0))
            matmul.input(1).replace_source_output(op.constant(weight * scale).output(0))
    assert len(errors) == 36
    assert 0 < min(errors) <= max(errors) < 0.05
    before, after = (rows_of(OpenVinoEngine(graph, spec, "f32"), batches) for graph in (plain, scaled))
    np.testing.assert_allclose(after, before, atol=1e-4)
