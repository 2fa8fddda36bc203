from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError

TRT_LLM: dict[str, Any] = {
    "build": {
        "base_model": "encoder_bert",
        "checkpoint_repository": {"source": "HF", "repo": "BAAI/bge-small-en-v1.5", "revision": "abc123"},
        "max_num_tokens": 4096,
    },
    "runtime": {"webserver_default_route": "/rerank"},
}
FIELDS = set(Settings.__struct_fields__)


def load(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> Settings:
    return Settings.load(flags or {}, environ or {}, None)


def of_block(**block: object) -> Settings:
    return Settings.from_truss_config({"model_metadata": {"bei": block}})


def trt_llm(**build: object) -> dict[str, Any]:
    return {**TRT_LLM, "build": {**TRT_LLM["build"], **build}}


# --- Sources


def test_defaults_are_the_contracts() -> None:
    settings = load()
    assert (settings.max_batch_tokens, settings.max_batch_requests) == (16_384, None)
    assert (settings.max_client_batch_size, settings.max_concurrent_requests) == (2048, 2048)
    assert (settings.max_queue_tokens, settings.payload_limit) == (1_048_576, 32_000_000)
    assert (settings.hostname, settings.port, settings.auto_truncate) == ("0.0.0.0", 7997, True)
    assert (settings.model_id, settings.dtype, settings.pooling, settings.engine) == (None, "auto", None, "auto")


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    sources: list[tuple[int, dict[str, object], dict[str, str]]] = [
        (7997, {}, {}),
        (1, {}, {}),
        (2, {}, {"PORT": "2"}),
        (3, {}, {"PORT": "2", "BEI_PORT": "3"}),
        (4, {"port": 4}, {"PORT": "2", "BEI_PORT": "3"}),
    ]
    for expected, flags, environ in sources:
        config.write_text("" if expected == 7997 else "model_metadata: {bei: {port: 1}}")
        assert Settings.load(flags, environ, config).port == expected


def test_a_flag_that_was_not_given_hides_nothing() -> None:
    assert load({"port": None, "model_id": None}, {"PORT": "5"}).port == 5


def test_truss_config_reads_our_block_and_the_environment() -> None:
    config = {"model_name": "x", "trt_llm": None, "model_metadata": {"tags": [], "bei": {"max_batch_tokens": 512}}}
    assert Settings.from_truss_config(config).max_batch_tokens == 512
    assert Settings.from_truss_config(config, {"BEI_MAX_BATCH_TOKENS": "64"}).max_batch_tokens == 64


@pytest.mark.parametrize(
    "config", [{}, {"model_metadata": None}, {"model_metadata": {}}, {"model_metadata": {"bei": None}}]
)
def test_no_block_means_defaults(config: dict[str, Any]) -> None:
    assert Settings.from_truss_config(config) == load()


def test_every_setting_has_its_environment_variable(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame\n")
    keys = tmp_path / "keys"
    keys.write_text("name: {key: sesame}")
    example = {
        "model_id": "a/b",
        "dtype": "float32",
        "pooling": "cls",
        "engine": "openvino",
        "default_prompt_name": "query",
        "trt_llm": json.dumps(TRT_LLM),
        "webserver_default_route": "/predict",
        "otlp_endpoint": "http://collector:4317",
        "torch_compile": "false",
        "auto_truncate": "false",
        "engine_process": "true",
        "json_output": "true",
        "verify": "always",
        "refresh": "true",
        "access_log": "true",
        "ui": "false",
        "disable_spans": "true",
        "log_level": "debug",
        "api_key_file": str(key),
        "api_keys_file": str(keys),
        "quantization_type": "fp8",
        **{name: "0.5" for name in FIELDS if name.startswith(("quality_", "smooth_"))},
    }
    default = load()
    for name in FIELDS:
        settings = load(environ={f"BEI_{name.upper()}": example.get(name, "12")})
        assert getattr(settings, name) != getattr(default, name), name


def test_a_tei_launch_environment_works() -> None:
    settings = load(
        environ={
            "MODEL_ID": "intfloat/e5-small",
            "REVISION": "main",
            "POOLING": "last-token",
            "MAX_BATCH_TOKENS": "2048",
            "AUTO_TRUNCATE": "0",
            "HF_TOKEN": "hf_x",
            "HOSTNAME": "3f2a91c0d7aa",  # what a container has, not an address
            "PORT": "80",
            "CORS_ALLOW_ORIGIN": "https://a.example, https://b.example",
            "JSON_OUTPUT": "true",
            "HUGGINGFACE_HUB_CACHE": "/data",
            "PATH": "/bin",
        }
    )
    assert (settings.model_id, settings.revision, settings.pooling) == ("intfloat/e5-small", "main", "last_token")
    assert (settings.max_batch_tokens, settings.auto_truncate, settings.hf_token) == (2048, False, "hf_x")
    assert (settings.hostname, settings.port, settings.json_output) == ("0.0.0.0", 80, True)
    assert settings.cors_allow_origin == ("https://a.example", "https://b.example")
    assert load(environ={"BEI_HOSTNAME": "::1"}).hostname == "::1"


@pytest.mark.parametrize("names", [["BEI_HF_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"]])
def test_the_token_has_several_names_the_first_given_wins(names: list[str]) -> None:
    for i in range(len(names)):
        assert load(environ={name: name for name in reversed(names[i:])}).hf_token == names[i]


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("false", False), ("FALSE", False), ("0", False)]
)
def test_booleans_in_the_environment(text: str, value: bool) -> None:
    assert load(environ={"BEI_AUTO_TRUNCATE": text, "JSON_OUTPUT": text}).auto_truncate is value


def test_empty_variables_are_unset() -> None:
    assert load(environ={"REVISION": "", "BEI_PORT": "", "PORT": "8080"}) == load(environ={"PORT": "8080"})


# --- What is refused, and what the refusal says


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"max_batch_token": 1}, "did you mean model_metadata.bei.max_batch_tokens?"),
        ({"max_batch_tokens": 0}, "model_metadata.bei.max_batch_tokens is 0: Expected `int` >= 1"),
        ({"max_batch_tokens": "512"}, "is '512': Expected `int`, got `str`"),
        ({"max_batch_tokens": True}, "is True: Expected `int`"),
        ({"port": 65_536}, "Expected `int` <= 65535"),
        ({"port": -1}, "Expected `int` >= 0"),
        ({"dtype": "fp32"}, "expected one of auto, float32, bfloat16, float16, int8"),
        ({"pooling": "median"}, "expected one of cls, max, mean, mean_sqrt_len, weighted_mean, last_token, splade"),
        ({"engine": "onnx"}, "expected one of auto, openvino, tensorrt_llm"),
        ({"webserver_default_route": "/embed"}, "expected one of /v1/embeddings, /rerank, /predict, /predict_tokens"),
        ({"otlp_endpoint": "collector:4317"}, "'collector:4317': expected a URL that begins with http:// or https://"),
        ({"devices": ["cuda:0"]}, "['cuda:0']: expected the number of a GPU, such as 0"),
        ({"model_id": ""}, "length >= 1"),
        ({"auto_truncate": "yes"}, "Expected `bool`"),
        ({"cache_dir": 3}, "expected the path of a folder"),
        ({"default_prompt": "a", "default_prompt_name": "b"}, "exclude each other"),
        ({"trt_llm": {"build": []}}, "trt_llm.build is []: expected a mapping of base_model"),
    ],
)
def test_a_bad_block_is_refused_with_a_correction(block: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        of_block(**block)


@pytest.mark.parametrize(
    "name", [n for n in sorted(FIELDS) if n == "port" or n.startswith(("max_", "payload", "token"))]
)
def test_no_number_may_be_zero_or_less_but_the_port(name: str) -> None:
    for value in [-1, *([] if name == "port" else [0])]:
        with pytest.raises(ConfigError, match=name):
            of_block(**{name: value})
    assert getattr(of_block(**{name: 1}), name) == 1


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BEI_MAX_BATCH_TOKEN": "1"}, "did you mean BEI_MAX_BATCH_TOKENS?"),
        ({"PORT": "http"}, "environment variable PORT is 'http': Expected `int`"),
        ({"BEI_AUTO_TRUNCATE": "yes"}, "environment variable BEI_AUTO_TRUNCATE is 'yes': Expected `bool`"),
        ({"BEI_TRT_LLM": "{"}, "BEI_TRT_LLM is not JSON"),
        ({"BEI_SERVED_MODEL_NAME": os.fsdecode(b"a\xff")}, "BEI_SERVED_MODEL_NAME is not text in UTF-8"),
        ({"BEI_MODELS": os.fsdecode(b'["a\xff"]')}, "BEI_MODELS is not text in UTF-8"),
        ({"BEI_API_KEY": os.fsdecode(b"a\xff")}, "BEI_API_KEY is not text in UTF-8"),
    ],
)
def test_a_bad_environment_is_refused_with_the_variables_name(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(environ=environ)


def test_an_unknown_name_lists_every_known_one() -> None:
    with pytest.raises(ConfigError) as in_block:
        of_block(nonsense=1)
    with pytest.raises(ConfigError) as in_flags:
        load({"nonsense": 1})
    with pytest.raises(ConfigError) as in_environment:
        load(environ={"BEI_NONSENSE": "1"})
    for name in FIELDS:
        assert name in str(in_block.value)
        assert f"--{name.replace('_', '-')}" in str(in_flags.value)
        assert f"BEI_{name.upper()}" in str(in_environment.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML"),
        *((f"a: !!{tag} x", "is not YAML: a date, number") for tag in ("timestamp", "bool", "int")),
        ("a: !!float ''", "is not YAML: a date, number"),
        ("- a", "must be a mapping"),
        ("model_metadata: {bei: [1]}", "model_metadata.bei must be a mapping"),
        ("model_metadata: [1]", "model_metadata.bei must be a mapping"),
        ("max_batch_tokens: 5\nport: 1", "put max_batch_tokens, port under model_metadata.bei"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Settings.load({}, {}, config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "config.yaml", tmp_path):
        with pytest.raises(ConfigError, match=re.escape(f"cannot read {path}")):
            Settings.load({}, {}, path)


def test_secrets_are_in_no_log_line_and_no_error() -> None:
    settings = of_block(api_key="sesame", checkpoint_secret="sesame", model_id="https://u:sesame@h/m.tar?sesame")
    assert "sesame" not in repr(settings)
    assert "port=7997" in repr(settings)
    assert "model_id='https://h/m.tar'" in repr(settings)
    with pytest.raises(ConfigError) as refused:
        of_block(api_key=["sesame"])
    assert "sesame" not in str(refused.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load().port = 1  # type: ignore[misc]


# --- One source over another


def test_another_model_does_not_inherit_a_revision() -> None:
    environ = {"MODEL_ID": "a/b", "REVISION": "v1"}
    assert load({"model_id": "c/d"}, environ).revision is None
    assert load({"model_id": "a/b"}, environ).revision == "v1"
    assert load({"model_id": "c/d", "revision": "v2"}, environ).revision == "v2"
    assert load({"model_id": "c/d"}, {"REVISION": "v1"}).revision == "v1"


def test_one_kind_of_default_prompt_replaces_the_other() -> None:
    settings = load({"default_prompt": "x: "}, {"DEFAULT_PROMPT_NAME": "query"})
    assert (settings.default_prompt, settings.default_prompt_name) == ("x: ", None)


# --- The trt_llm block


def test_a_config_written_for_baseten_loads_unchanged(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        """
model_name: BEI-mixedbread-rerank
resources: {accelerator: H100_40GB, cpu: '1', memory: 10Gi, use_gpu: true}
model_metadata: {example_model_input: {input: text}, tags: [openai-compatible]}
python_version: py39
trt_llm:
  build:
    base_model: encoder
    checkpoint_repository: {repo: michaelfeil/Qwen3-Embedding-8B-auto, revision: main, source: HF}
    max_num_tokens: 40960
    num_builder_gpus: 2
    quantization_type: fp8
    plugin_configuration: {paged_kv_cache: false, use_paged_context_fmha: false}
  runtime:
    webserver_default_route: /v1/embeddings
    kv_cache_free_gpu_mem_fraction: 0.5
"""
    )
    settings = Settings.load({}, {}, config)
    assert (settings.model_id, settings.revision) == ("michaelfeil/Qwen3-Embedding-8B-auto", "main")
    assert (settings.max_batch_tokens, settings.max_batch_requests) == (40_960, 256)
    assert settings.webserver_default_route == "/v1/embeddings"
    assert settings.trt_llm is not None
    assert settings.trt_llm.build.quantization_type == settings.quantization_type == "fp8"
    assert settings.trt_llm.ignored() == (
        "build.num_builder_gpus",
        "build.plugin_configuration",
        "runtime.kv_cache_free_gpu_mem_fraction",
    )


def test_both_places_of_the_block_mean_the_same() -> None:
    ours, theirs = of_block(trt_llm=TRT_LLM), Settings.from_truss_config({"trt_llm": TRT_LLM})
    assert ours == theirs == load(environ={"BEI_TRT_LLM": json.dumps(TRT_LLM)})
    assert (ours.model_id, ours.revision, ours.max_batch_tokens) == ("BAAI/bge-small-en-v1.5", "abc123", 4096)
    assert ours.webserver_default_route == "/rerank"
    with pytest.raises(ConfigError, match="keep one of them"):
        Settings.from_truss_config({"trt_llm": TRT_LLM, "model_metadata": {"bei": {"trt_llm": TRT_LLM}}})


def test_an_explicit_key_beside_the_block_wins() -> None:
    settings = of_block(trt_llm=TRT_LLM, max_batch_tokens=128, webserver_default_route="/predict", revision="v2")
    assert (settings.max_batch_tokens, settings.webserver_default_route, settings.revision) == (128, "/predict", "v2")
    other = Settings.from_truss_config({"trt_llm": TRT_LLM}, {"MODEL_ID": "/models/mine", "MAX_BATCH_REQUESTS": "8"})
    assert (other.model_id, other.revision, other.max_batch_requests) == ("/models/mine", None, 8)


@pytest.mark.parametrize(("base_model", "tokens"), [("encoder", 16_384), ("encoder_bert", 8192)])
def test_the_token_budget_depends_on_the_base_model(base_model: str, tokens: int) -> None:
    block = trt_llm(base_model=base_model, max_num_tokens=None)
    assert of_block(trt_llm=block).max_batch_tokens == tokens


@pytest.mark.parametrize(
    ("source", "repo", "model_id"),
    [
        ("HF", "a/b", "a/b"),
        ("LOCAL", "/models/a", "/models/a"),
        ("S3", "bucket/a", "s3://bucket/a"),
        ("S3", "s3://bucket/a", "s3://bucket/a"),
        ("GCS", "bucket/a", "gs://bucket/a"),
        ("AZURE", "account/a", "azure://account/a"),
        ("REMOTE_URL", "https://x.example/a.tar.gz", "https://x.example/a.tar.gz"),
        ("BASETEN_TRAINING", "job", "baseten-training://job"),
    ],
)
def test_every_source_becomes_one_model_id(source: str, repo: str, model_id: str) -> None:
    block = trt_llm(checkpoint_repository={"source": source, "repo": repo})
    assert of_block(trt_llm=block).model_id == model_id


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            {"base_model": "decoder"},
            "trt_llm.build.base_model is 'decoder': expected one of encoder, encoder_bert; BEI",
        ),
        ({"base_model": None}, "trt_llm.build.base_model is missing: expected one of encoder, encoder_bert; BEI"),
        ({"checkpoint_repository": None}, "trt_llm.build.checkpoint_repository is missing"),
        ({"base_model": "decoder", "checkpoint_repository": None}, "expected one of encoder, encoder_bert"),
        ({"max_num_token": 100}, "did you mean trt_llm.build.max_num_tokens?"),
        ({"max_num_tokens": 64}, "trt_llm.build.max_num_tokens is 64: Expected `int` >= 65"),
        ({"quantization_type": "weights_int8"}, "expected one of no_quant, fp8, fp8_kv, fp8_mlp_only, fp4"),
        ({"quantization_config": {"calib_size": 100}}, "trt_llm.build.quantization_config.calib_size is 100"),
        (
            {"checkpoint_repository": {"source": "hf", "repo": "a/b"}},
            "repository.source is 'hf': expected one of HF, GCS",
        ),
        ({"checkpoint_repository": {"source": "HF"}}, "trt_llm.build.checkpoint_repository.repo is missing"),
    ],
)
def test_the_error_for_a_bad_block_names_the_key_and_its_allowed_values(build: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        of_block(trt_llm=trt_llm(**build))


def test_a_route_that_bei_lacks_is_ignored_with_a_log_line() -> None:
    settings = of_block(trt_llm={**TRT_LLM, "runtime": {"webserver_default_route": "/v1/systemone"}})
    assert settings.webserver_default_route is None
    assert settings.trt_llm is not None
    assert settings.trt_llm.ignored() == ("runtime.webserver_default_route",)


def test_defaults_and_used_keys_are_not_reported_as_ignored() -> None:
    settings = of_block(
        trt_llm=trt_llm(max_seq_len=512, tensor_parallel_count=1, quantization_config={"calib_size": 128})
    )
    assert settings.trt_llm is not None
    assert settings.trt_llm.ignored() == ()
