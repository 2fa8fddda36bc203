"""Which engine and which resources `bei truss init` gives a model; whether that engine can serve it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from bei_core.config.settings import Settings
from bei_core.engines.registry import ENGINES, reason_not_to_serve
from bei_core.errors import CheckpointError, ConfigError, UnsupportedModelError
from bei_core.truss.described import Described, Unknown, describe
from bei_core.truss.init import Target, choose_target, configured, make
from bei_core.truss.resources import gpu_bytes, parse_quantity
from tests.hub import TOKENIZER, Hub, Repository, as_bytes, f32, pack, write

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "baseten"

# Every distinct block for an encoder of Baseten's public examples, as of April 2026. The last column is what
# `bei truss init` makes of it: an engine and a card, or a refusal with a part of its reason.
ENCODERS = list(csv.DictReader((DATA / "encoders.csv").read_text().splitlines()))

BERT = {
    "architectures": ["BertModel"],
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "vocab_size": 8,
    "max_position_embeddings": 64,
}
MODERN_BERT = {**BERT, "architectures": ["ModernBertModel"]}
FILES: dict[str, object] = {
    "config.json": BERT,
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "model.safetensors": pack({"x": f32(*range(1000))}),
}


def given_for(
    repo: str,
    accelerator: str = "L4",
    quantization: str = "no_quant",
    *,
    repository: dict[str, str] | None = None,
    **more: object,
) -> dict[str, Any]:
    repository = {"source": "HF", "repo": repo, "revision": "main", **(repository or {})}
    build = {"base_model": "encoder", "checkpoint_repository": repository, "quantization_type": quantization}
    return {"resources": {"accelerator": accelerator, **more}, "trt_llm": {"build": build}}


def target_of(given: dict[str, Any], engine: str = "auto") -> tuple[Target, list[str]]:
    return choose_target(given, Settings.from_truss_config({"trt_llm": given["trt_llm"]}), engine)


def gib(target: Target) -> float:
    return parse_quantity(target.resources["memory"]) / (1 << 30)


@pytest.mark.parametrize("engine", ["auto", "openvino"])
@pytest.mark.parametrize("row", ENCODERS, ids=lambda row: f"{row['base_model']} {row['repo']} {row['accelerator']}")
def test_a_public_example_gives_a_truss_that_can_start_or_a_refusal(row: dict[str, str], engine: str) -> None:
    given = given_for(row["repo"], row["accelerator"], row["quantization_type"])
    given["trt_llm"]["build"] |= {"base_model": row["base_model"], "max_num_tokens": int(row["max_num_tokens"])}
    given["trt_llm"]["runtime"] = {"webserver_default_route": row["route"]}
    outcome = row["comes_out_as"] if engine == "auto" else "openvino on processors"
    if outcome.startswith("refused: "):
        with pytest.raises(UnsupportedModelError, match=re.escape(outcome.removeprefix("refused: "))):
            target_of(given, engine)
        return
    target, _ = target_of(given, engine)
    assert f"{target.engine} on {target.resources.get('accelerator', 'processors')}" == outcome
    config = configured(given, target, docker_server=False)
    settings = Settings.from_truss_config(config, {})
    assert settings.model_id == row["repo"]
    assert settings.max_batch_tokens == int(row["max_num_tokens"])
    assert settings.webserver_default_route == row["route"]
    assert settings.engine in {"auto", target.engine}
    assert "trt_llm" not in config
    model = describe(settings)
    assert isinstance(model, Described)
    assert reason_not_to_serve(target.engine, model.spec, settings) is None
    assert needs(config) >= {"tensorrt_llm": set(), "torch": {"torch"}, "openvino": {"openvino"}}[target.engine]
    assert ("base_image" in config) is (target.engine == "tensorrt_llm")
    assert ("accelerator" in config["resources"]) is (target.engine != "openvino")


def needs(config: dict[str, Any]) -> set[str]:
    """The names of the packages that the Truss installs."""
    return {Requirement(line).name for line in config["requirements"]}


@pytest.mark.parametrize(
    ("repo", "engine"),
    [
        ("Alibaba-NLP/gte-modernbert-base", "torch"),
        ("Babelscape/wikineural-multilingual-ner", "torch"),
        ("nomic-ai/nomic-embed-text-v1.5", "torch"),
        ("nomic-ai/nomic-embed-text-v2-moe", "torch"),
        ("jinaai/jina-embeddings-v2-base-code", "torch"),
        ("nvidia/llama-embed-nemotron-8b", "tensorrt_llm"),
        ("BAAI/bge-large-en-v1.5", "tensorrt_llm"),
    ],
)
def test_the_engine_that_can_is_chosen(repo: str, engine: str) -> None:
    assert target_of(given_for(repo, "H100"))[0].engine == engine


def test_an_engine_that_cannot_is_refused_although_it_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="TensorRT-LLM: the TensorRT-LLM engine does not run ModernBert"):
        target_of(given_for("Alibaba-NLP/gte-modernbert-base"), "tensorrt_llm")


def test_what_no_engine_quantises_is_refused_with_each_ones_reason() -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        target_of(given_for("Alibaba-NLP/gte-modernbert-base", "B200", "fp4"))
    assert "does not run ModernBertModel" in str(refused.value)
    assert "torch: engines for GPUs are not built in fp4; use fp8" in str(refused.value)
    assert target_of(given_for("Alibaba-NLP/gte-modernbert-base", "H100", "fp8"))[0].engine == "torch"


def test_a_gpu_engine_needs_an_accelerator() -> None:
    given = given_for("BAAI/bge-m3")
    del given["resources"]["accelerator"]
    with pytest.raises(ConfigError, match="--engine torch needs a GPU"):
        target_of(given, "torch")
    assert target_of(given)[0].engine == "openvino"


def test_the_torch_image_has_all_that_serving_needs_and_no_cpu_engine() -> None:
    given = given_for("Alibaba-NLP/gte-modernbert-base")
    for docker_server in (True, False):
        config = configured(given, target_of(given)[0], docker_server=docker_server)
        lock = (ROOT / "requirements" / "gpu-path.lock").read_text()
        assert f"\n{next(line for line in config['requirements'] if line.startswith('torch=='))} " in lock
        on_cpu = configured(given, target_of(given, "openvino")[0], docker_server=docker_server)
        assert needs(config) == needs(on_cpu) - {"openvino"} | {"torch"}
        assert config["python_version"] == on_cpu["python_version"]
        assert config["model_metadata"]["bei"]["engine"] == "torch"


def test_the_torch_engine_needs_no_cpu_engine() -> None:
    code = """
import sys
sys.modules["openvino"] = None
import bei_core.cli.serve, bei_core.engines.torch.build, bei_core.http.server, bei_core.serving.service
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "packages")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_old_card_is_for_torch_alone() -> None:
    with pytest.raises(ConfigError, match=r"T4 is too old for TensorRT-LLM; .* or `--engine torch`"):
        target_of(given_for("BAAI/bge-m3", "T4"))
    assert target_of(given_for("BAAI/bge-m3", "T4"), "torch")[0].resources["accelerator"] == "T4"


@pytest.mark.parametrize(
    ("quantization", "weights", "cpu"), [("no_quant", 39.7, "16"), ("fp8", 19.8, "8"), ("fp4", 6.6, "4")]
)
def test_the_memory_of_a_7b_on_a_cpu_holds_its_weights(quantization: str, weights: float, cpu: str) -> None:
    """As published and in f32 as computed; in int8, three times; in int4, twice. A random 7B was built in 4 bits."""
    target, _ = target_of(given_for("intfloat/e5-mistral-7b-instruct", "H100", quantization), "openvino")
    assert weights + 4 <= gib(target) < weights + 6
    assert target.resources["cpu"] == cpu
    assert "accelerator" not in target.resources


def test_a_small_model_on_a_cpu_gets_what_it_got() -> None:
    target, notes = target_of(given_for("sentence-transformers/all-MiniLM-L6-v2", memory="2Gi"), "openvino")
    assert (dict(target.resources), notes) == ({"cpu": "4", "memory": "8Gi"}, [])


# Well-known models, given a T4 (16 GB, too small or too old for most) with torch: the card that comes out. The GB are
# 1.1 x 2 bytes x the millions of weights, and 3 GB.
CARDS = (
    ("sentence-transformers/all-MiniLM-L6-v2", 3.0, "T4"),
    ("BAAI/bge-base-en-v1.5", 3.2, "T4"),
    ("BAAI/bge-m3", 4.2, "T4"),
    ("michaelfeil/Qwen3-Embedding-0.6B-auto", 4.3, "T4"),
    ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", 6.9, "T4"),
    ("michaelfeil/Qwen3-Embedding-4B-auto", 11.8, "T4"),
    ("intfloat/e5-mistral-7b-instruct", 18.6, "L4"),  # 24 GB
    ("michaelfeil/Qwen3-Embedding-8B-auto", 19.6, "L4"),
    ("BAAI/bge-multilingual-gemma2", 23.3, "L4"),
    ("baseten/example-Meta-Llama-3-70B-InstructForSequenceClassification", 155.9, "B200"),  # H200 has 141, B200 180
)


@pytest.mark.parametrize(("repo", "num_gb", "card"), CARDS)
def test_a_model_gets_the_smallest_card_that_holds_it(repo: str, num_gb: float, card: str) -> None:
    model = describe(Settings(model_id=repo))
    assert isinstance(model, Described)
    assert gpu_bytes(model) / 1e9 == pytest.approx(num_gb, abs=0.05)
    target, notes = target_of(given_for(repo, "T4"), "torch")
    assert target.resources["accelerator"] == card
    assert [f"{card} in place of T4, which has 16 GB" in note for note in notes] == ([] if card == "T4" else [True])


def test_a_70b_gets_a_card_and_the_memory_that_hold_it() -> None:
    repo = "baseten/example-Meta-Llama-3-70B-InstructForSequenceClassification"
    target, notes = target_of(given_for(repo, "H100:2", "fp8", memory="10Gi", cpu="1", use_gpu=True))
    assert target.resources["accelerator"] == "B200:2"
    assert target.resources["use_gpu"] is True
    assert gib(target) >= 2 * 69.5e9 / (1 << 30)
    assert "resources.accelerator is B200 in place of H100, which has 80 GB" in notes[0]
    assert "it uses one; --engine torch uses all" in notes[1]
    kept, notes = target_of(given_for(repo, "B300", "fp8", memory="300Gi"))
    assert (dict(kept.resources), notes) == ({"accelerator": "B300", "memory": "300Gi"}, [])


def test_what_baseten_decides_by_instance_type_stays() -> None:
    given = {**given_for("BAAI/bge-m3"), "resources": {"instance_type": "H100:1x", "accelerator": "H100"}}
    assert target_of(given)[0].resources == given["resources"]


def test_a_memory_that_is_no_quantity_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"resources.memory '10 gigs' is not a quantity such as 10Gi"):
        target_of(given_for("BAAI/bge-m3", memory="10 gigs"))


def test_an_unknown_model_needs_an_engine_by_name() -> None:
    given = given_for("me/private")
    with pytest.raises(ConfigError) as refused:
        target_of(given)
    assert "the class of me/private is not known" in str(refused.value)
    assert "HF_HUB_OFFLINE" in str(refused.value)
    assert "--engine tensorrt_llm, --engine torch or --cpu" in str(refused.value)
    target, notes = target_of(given, "torch")
    assert target.resources == given["resources"]
    assert "not checked whether torch can serve me/private" in notes[0]


def test_checkpoints_of_basetens_training_are_refused_by_init_already() -> None:
    for engine in ("auto", "torch", "openvino"):
        with pytest.raises(CheckpointError, match=r"BASETEN_TRAINING.*only its builders read"):
            target_of(given_for("job/1", repository={"source": "BASETEN_TRAINING"}), engine)


def test_a_local_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path, {**FILES, "config.json": MODERN_BERT})
    given = given_for(str(tmp_path), repository={"source": "LOCAL"})
    assert target_of(given)[0].engine == "torch"


def test_a_folder_with_a_broken_config_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {**FILES, "config.json": {"architectures": ["OtterModel"], "max_position_embeddings": 9}})
    for engine in ENGINES:
        with pytest.raises(UnsupportedModelError, match="OtterModel"):
            target_of(given_for(str(tmp_path), repository={"source": "LOCAL"}), engine)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Hub() as hub:
        yield hub


def described_by(hub: Hub, repo: str, cache: Path) -> Described | Unknown:
    return describe(Settings(model_id=repo, huggingface_hub_cache=cache), hub.endpoint)


def test_the_hub_wins_over_the_table_and_no_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.add("BAAI/bge-m3", as_bytes({**FILES, "config.json": MODERN_BERT}))
    model = described_by(hub, "BAAI/bge-m3", tmp_path)
    assert isinstance(model, Described)
    assert model.spec.architecture == "ModernBertModel"
    assert model.weight_bytes == len(pack({"x": f32(*range(1000))}))
    assert not [name for name in hub.files_read() if name.endswith(".safetensors")]


def test_a_repository_of_pickles_is_refused_with_the_remedy(hub: Hub, tmp_path: Path) -> None:
    files = as_bytes({**FILES, "model.pt": b"x"})
    del files["model.safetensors"]
    hub.add("BAAI/bge-m3", files)
    with pytest.raises(
        UnsupportedModelError, match=r"no model.safetensors and no pytorch_model.bin but model.pt.*convert"
    ):
        described_by(hub, "BAAI/bge-m3", tmp_path)


def test_pickled_weights_count_only_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    files = as_bytes({**FILES, "pytorch_model.bin": bytes(999), "training_args.bin": b"x"})
    hub.add("owner/both", files)
    del files["model.safetensors"]
    hub.add("owner/pickled", files)
    both, pickled = (described_by(hub, name, tmp_path) for name in ("owner/both", "owner/pickled"))
    assert isinstance(both, Described)
    assert isinstance(pickled, Described)
    assert both.weight_bytes == len(pack({"x": f32(*range(1000))}))
    assert pickled.weight_bytes == 999


def test_a_private_repository_says_that_a_token_is_needed(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["me/private"] = Repository(token="t")
    model = described_by(hub, "me/private", tmp_path)
    assert isinstance(model, Unknown)
    assert "HF_TOKEN" in model.reason


def test_a_hub_that_is_gone_leaves_the_table(hub: Hub, tmp_path: Path) -> None:
    hub.stop()
    model = described_by(hub, "BAAI/bge-m3", tmp_path)
    assert isinstance(model, Described)
    assert model.spec.architecture == "XLMRobertaModel"


def test_every_model_of_the_table_can_be_served_on_a_cpu() -> None:
    from bei_core.truss.described import _table

    for known in _table().models:
        model = describe(Settings(model_id=known.name))
        assert isinstance(model, Described)
        assert reason_not_to_serve("openvino", model.spec, Settings(model_id=known.name)) is None, known.name


def test_the_command_asks_the_hub_that_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given_for("me/mine")))
    arguments = ["-m", "bei_core.cli", "truss", "init", "--from", "given.yaml", "out"]
    with Hub() as hub:
        hub.add("me/mine", as_bytes({**FILES, "config.json": MODERN_BERT}))
        environ = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "*", "PATH": os.environ["PATH"]}
        environ |= {"PYTHONPATH": str(ROOT / "packages")}
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["model_metadata"]["bei"]["engine"] == "torch"


def test_init_says_the_notes(tmp_path: Path) -> None:
    given = given_for("BAAI/bge-m3", "H100:2")
    given["trt_llm"]["build"]["plugin_configuration"] = {"paged_kv_cache": False}
    given["trt_llm"]["runtime"] = {"kv_cache_free_gpu_mem_fraction": 0.5}
    given["trt_llm"]["inference_stack"] = "v1"
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    notes = make(tmp_path / "given.yaml", tmp_path / "out").notes
    assert [note.partition(" ")[0] for note in notes] == [
        "TensorRT-LLM",
        "trt_llm.build.plugin_configuration",
        "trt_llm.runtime.kv_cache_free_gpu_mem_fraction",
    ]


def test_torch_uses_all_gpus_of_the_accelerator() -> None:
    """A copy of the model on each, or one model that is divided among them, which may then be larger than a GPU."""
    given = given_for("BAAI/bge-m3", "H100:2")
    target, notes = target_of(given, "torch")
    assert notes == []
    settings = Settings.from_truss_config(configured(given, target, docker_server=False), {})
    assert (settings.devices, settings.tensor_parallel_size) == (("0", "1"), 1)

    repo = "baseten/example-Meta-Llama-3-70B-InstructForSequenceClassification"
    given = given_for(repo, "H100:4", memory="300Gi")
    given["trt_llm"]["build"]["tensor_parallel_count"] = 4
    target, notes = target_of(given)
    assert (target.engine, target.resources["accelerator"], notes) == ("torch", "H100:4", [])
    settings = Settings.from_truss_config(configured(given, target, docker_server=False), {})
    assert (settings.devices, settings.tensor_parallel_size) == ((), 4)


@pytest.mark.parametrize("repo", ["BAAI/bge-m3", "owner/unknown"])
def test_a_model_is_not_divided_among_more_gpus_than_there_are_and_idle_ones_are_named(repo: str) -> None:
    given = given_for(repo, "H100")
    given["trt_llm"]["build"]["tensor_parallel_count"] = 2
    with pytest.raises(
        ConfigError, match=r"needs 2 GPUs, and resources\.accelerator H100 is 1; write H100:2, or a tensor"
    ):
        target_of(given, "torch")
    given["resources"]["accelerator"] = "H100:4"
    _, notes = target_of(given, "torch")
    assert notes[-1] == (
        "tensor_parallel_count 2 uses 2 of the 4 GPUs of resources.accelerator H100:4; write H100:2, or "
        "tensor_parallel_count 4"
    )
    given["resources"] = {"instance_type": "H100:2x", "accelerator": "H100"}
    target_of(given, "torch")


def test_the_documents_say_how_many_examples_come_out_how() -> None:
    counts = Counter(re.split("[ :]", row["comes_out_as"])[0] for row in ENCODERS)
    table = (ROOT / "docs" / "truss.md").read_text()
    said = dict(re.findall(r"^\| `?(tensorrt_llm|torch|refused)`? \| (\d+) \|", table, re.MULTILINE))
    assert {name: int(count) for name, count in said.items()} == counts
    assert sum(counts.values()) == len(ENCODERS)
