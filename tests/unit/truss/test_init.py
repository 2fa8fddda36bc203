"""`bei truss init`, and the examples that it made; tests/e2e/test_push.py has truss push them."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from bei_core.cli.main import app
from bei_core.config.keys import check_given
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError, UnsupportedModelError
from bei_core.truss.init import (
    IN_THE_GPU_IMAGE,
    REQUIREMENTS,
    SERVER_REQUIREMENTS,
    Target,
    choose_target,
    configured,
    make,
)
from bei_core.truss.resources import parse_quantity

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "baseten"
MINILM = DATA / "BEI-Bert-all-MiniLM-L6-v2.yaml"
LINQ = DATA / "BEI-Linq-Embed-Mistral.yaml"

# Every distinct block for an encoder of Baseten's public examples, as of April 2026.
ENCODERS = list(csv.DictReader((DATA / "encoders.csv").read_text().splitlines()))

# What their other examples have in the place of such a block, and the reason that is given.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"base_model": "decoder"}, "base_model is 'decoder': expected one of encoder, encoder_bert; BEI serves encoders"),
    ({"base_model": "whisper"}, "base_model is 'whisper'"),
    ({"base_model": None}, "base_model is missing"),
    ({"quantization_type": "smooth_quant"}, "quantization_type is 'smooth_quant': expected one of no_quant, fp8"),
    ({"max_batch_size": 4096}, "max_batch_size is 4096"),
    ({"checkpoint_repository": {"repo": "a/b"}}, "checkpoint_repository.source is missing"),
]

ON_CPU = Target("openvino", {"cpu": "4", "memory": "8Gi"})
ON_GPU = Target("tensorrt_llm", {"accelerator": "H100"})
ON_TORCH = Target("torch", {"accelerator": "H100"})

PYTHON = {"python_version": "3.11", "python_full_version": "3.11.9"}  # of the image


def commands() -> dict[str, tuple[str, list[str]]]:
    """Of each example, the config.yaml it is made from and the flags, as scripts/make_examples.sh has them."""
    lines = (ROOT / "scripts" / "make_examples.sh").read_text().splitlines()
    words = [shlex.split(line) for line in lines if line.startswith("init ")]
    return {output: (source, flags) for _, source, output, *flags in words}


def block_of(row: dict[str, str]) -> dict[str, Any]:
    repository = {"source": row["source"], "repo": row["repo"], "revision": "main"}
    build: dict[str, Any] = {"base_model": row["base_model"], "checkpoint_repository": repository}
    build |= {"max_num_tokens": int(row["max_num_tokens"]), "quantization_type": row["quantization_type"]}
    build |= {"num_builder_gpus": int(row["num_builder_gpus"])} if row["num_builder_gpus"] != "0" else {}
    return {"build": build, "runtime": {"webserver_default_route": row["route"]}}


def config_of(**keys: object) -> dict[str, Any]:
    return {"model_name": "m", "resources": {"accelerator": "L4"}, "trt_llm": block_of(ENCODERS[0]), **keys}


def saved(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    return folder / "given.yaml"


@pytest.mark.parametrize("name", commands())
def test_an_example_is_what_init_makes(name: str) -> None:
    source, flags = commands()[name]
    folder = ROOT / "examples" / name
    options: dict[str, Any] = {flag.strip("-").replace("-", "_"): True for flag in flags}
    made = make(DATA / f"{source}.yaml", folder, **options).files
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == made, "run scripts/make_examples.sh"


def test_there_are_no_other_examples() -> None:
    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_dir()} == commands().keys()


@pytest.mark.parametrize(("keys", "reason"), REFUSED)
def test_a_block_that_is_not_for_an_encoder_is_refused_with_the_reason(
    tmp_path: Path, keys: dict[str, Any], reason: str
) -> None:
    config = config_of()
    config["trt_llm"]["build"] = {**config["trt_llm"]["build"], **keys}
    with pytest.raises(ConfigError, match=re.escape(reason)):
        make(saved(tmp_path, config), tmp_path / "out")


def test_the_second_inference_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="v2 is for generative models"):
        make(saved(tmp_path, config_of(trt_llm={"inference_stack": "v2"})), tmp_path / "out")


def test_a_config_without_the_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trt_llm block"):
        make(saved(tmp_path, {"model_name": "m"}), tmp_path / "out")


def test_elsewhere_it_has_a_copy_of_the_packages(tmp_path: Path) -> None:
    files = make(MINILM, tmp_path / "out", cpu=True).files
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "packages").rglob("*.py")}
    assert files.keys() - {"config.yaml"} >= tracked | {"model/model.py"}
    assert files["packages/bei_core/data/rerank_templates.json"]
    assert not [name for name in files if "__pycache__" in name or "egg-info" in name]
    assert "external_package_dirs" not in yaml.safe_load(files["config.yaml"])


def test_processors_and_an_engine_for_gpus_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--cpu means --engine openvino; give one of --cpu and --engine torch$"):
        make(MINILM, tmp_path / "out", cpu=True, engine="torch")


def test_what_the_config_says_of_other_things_stays() -> None:
    given = config_of(
        secrets={"hf_access_token": None},
        environment_variables={"A": "1"},
        model_metadata={"tags": ["openai-compatible"], "bei": {"auto_truncate": False}},
        runtime={"predict_concurrency": 9, "health_checks": {"restart_threshold_seconds": 7}},
        requirements=["einops", "msgspec==0.1", "Jinja2 < 3.1"],
        python_version="py39",
    )
    config = configured(given, ON_CPU, docker_server=True)
    assert config["secrets"] == {"hf_access_token": None}
    assert config["environment_variables"] == {"A": "1", "PYTHONPATH": "/packages"}
    assert config["model_metadata"]["tags"] == ["openai-compatible"]
    assert config["model_metadata"]["bei"] == {"auto_truncate": False, "trt_llm": given["trt_llm"]}
    assert config["runtime"]["predict_concurrency"] == 9
    assert config["runtime"]["health_checks"]["restart_threshold_seconds"] == 7
    assert config["runtime"]["health_checks"]["startup_threshold_seconds"] == 1200
    assert config["python_version"] == "py311"
    assert "einops" in config["requirements"]
    assert not {"msgspec==0.1", "Jinja2 < 3.1"} & set(config["requirements"])


@pytest.mark.parametrize("line", ["torch==2.10.0", "torch >= 2.8"])
def test_the_torch_of_the_config_stays_because_the_driver_may_need_it(line: str) -> None:
    """Two requirements of one package could not be installed."""
    found = configured(config_of(requirements=[line]), ON_TORCH, docker_server=False)["requirements"]
    assert [each for each in found if each.startswith("torch")] == [line]


def test_requirements_are_those_of_the_repositorys_truss_and_of_the_lock() -> None:
    assert sorted(yaml.safe_load((ROOT / "config.yaml").read_text())["requirements"]) == sorted(REQUIREMENTS)
    lock = (ROOT / "requirements" / "dev.lock").read_text()
    for line in (*REQUIREMENTS, *SERVER_REQUIREMENTS):
        found = re.findall(rf"^{re.escape(line)}(?: ; (.*?))? \\$", lock, re.MULTILINE)
        assert found, f"update {line} to dev.lock"
        markers = [Requirement(f"x ; {marker}").marker for marker in found if marker]
        assert all(marker and marker.evaluate(PYTHON) for marker in markers)


def test_a_block_adds_only_the_requirements_that_it_needs() -> None:
    given = config_of()
    given["trt_llm"]["build"]["checkpoint_repository"]["source"] = "S3"
    assert given["trt_llm"]["build"]["quantization_type"] == "fp8"
    on_cpu = configured(given, ON_CPU, docker_server=False)["requirements"]
    assert {Requirement(line).name for line in on_cpu} == {*(Requirement(line).name for line in REQUIREMENTS), "s3fs"}
    on_gpu = configured(given, ON_GPU, docker_server=False)["requirements"]
    names = {Requirement(line).name for line in on_gpu}
    assert "s3fs" in names
    plain = configured(config_of(trt_llm=block_of(ENCODERS[1])), ON_CPU, docker_server=False)["requirements"]
    assert sorted(plain) == sorted(REQUIREMENTS)


@pytest.mark.parametrize(
    ("card", "quantization", "reason"),
    [
        ("T4", "no_quant", "T4 is too old for TensorRT-LLM; use an L4 or newer"),
        ("A10G", "fp8", "fp8 needs an L4, H100 or newer; with A10G, use no_quant"),
        ("A100:2", "fp8_mlp_only", "fp8_mlp_only needs an L4, H100 or newer; with A100, use no_quant"),
        ("H100_40GB", "fp4", "engines for GPUs are not built in fp4; use fp8"),
        ("L4", "fp8", None),
        ("A100", "no_quant", None),
    ],
)
def test_a_card_that_lacks_the_precision_is_refused(card: str, quantization: str, reason: str | None) -> None:
    given = config_of(resources={"accelerator": card})
    given["trt_llm"]["build"]["quantization_type"] = quantization
    settings = Settings.from_truss_config({"trt_llm": given["trt_llm"]})
    if reason is None:
        assert choose_target(given, settings, "auto")[0].engine == "tensorrt_llm"
        return
    with pytest.raises((ConfigError, UnsupportedModelError), match=re.escape(reason)):
        choose_target(given, settings, "auto")
    if quantization != "fp4":
        assert "accelerator" not in choose_target(given, settings, "openvino")[0].resources


def test_the_gpu_image_keeps_its_own_versions() -> None:
    for docker_server in (True, False):
        config = configured(config_of(), ON_GPU, docker_server=docker_server)
        names = {Requirement(line).name for line in config["requirements"]}
        assert not names & ((IN_THE_GPU_IMAGE | {"openvino"}) - {"numpy"})
        assert ("numpy" in names) is not docker_server
        assert "jinja2" in names  # older versions have known escapes from its sandbox


def test_the_command_lists_keys_without_effect_and_overwrites_nothing(tmp_path: Path) -> None:
    arguments = ["truss", "init", "--from", str(saved(tmp_path, config_of())), str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "trt_llm.build.num_builder_gpus has no effect" in done.output
    assert (tmp_path / "out" / "model" / "model.py").is_file()
    again = CliRunner().invoke(app, arguments)
    assert "exists already; --force overwrites it" in str(again.exception)
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0


def test_a_server_in_a_container_reads_secrets_where_baseten_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bei_core.config.files.SECRETS", tmp_path)
    (tmp_path / "hf_access_token").write_text("t\n")
    config = saved(tmp_path, config_of(secrets={"hf_access_token": None, "api_key": None}))
    with pytest.raises(ConfigError, match="declares the secret api_key, which has no value"):  # it would be open
        check_given(Settings.load({}, {}, config).api_key)
    (tmp_path / "api_key").write_text("k\n")
    settings = Settings.load({}, {}, config)
    assert (settings.hf_token, settings.api_key) == ("t", "k")


@pytest.mark.parametrize("text", ["1.2.3Gi", ".Gi", "Gi", "1e3", "-1Gi", "1 Gib"])
def test_an_amount_of_memory_that_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a quantity such as 10Gi"):
        parse_quantity(text)
