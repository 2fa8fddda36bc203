"""Launch lines of text-embeddings-inference 1.9.3: every flag and variable of its router/src/main.rs works here."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bei_core.cli import main as cli
from bei_core.config.settings import SETTINGS, Settings
from bei_core.engines.open import build_engine, open_engine
from bei_core.errors import CheckpointError, ConfigError
from bei_core.http.traces import open_traces
from tests.golden.cases import GOLDEN

# Each flag with a value, the setting it gives, and the value there. `None`: the flag has no value.
FLAGS: list[tuple[str, str | None, str, object]] = [
    ("--model-id", "BAAI/bge-small-en-v1.5", "model_id", "BAAI/bge-small-en-v1.5"),
    ("--revision", "refs/pr/2", "revision", "refs/pr/2"),
    ("--tokenization-workers", "3", "tokenization_workers", 3),
    ("--dtype", "float16", "dtype", "float16"),
    ("--dtype", "float32", "dtype", "float32"),
    ("--dtype", "bfloat16", "dtype", "bfloat16"),
    ("--served-model-name", "n", "served_model_name", "n"),
    ("--pooling", "cls", "pooling", "cls"),
    ("--pooling", "mean", "pooling", "mean"),
    ("--pooling", "splade", "pooling", "splade"),
    ("--pooling", "last-token", "pooling", "last_token"),
    ("--max-concurrent-requests", "512", "max_concurrent_requests", 512),
    ("--max-batch-tokens", "4096", "max_batch_tokens", 4096),
    ("--max-batch-requests", "7", "max_batch_requests", 7),
    ("--max-client-batch-size", "32", "max_client_batch_size", 32),
    ("--auto-truncate", None, "auto_truncate", True),
    ("--auto-truncate", "true", "auto_truncate", True),
    ("--auto-truncate", "false", "auto_truncate", False),
    ("--default-prompt-name", "query", "default_prompt_name", "query"),
    ("--default-prompt", "query: ", "default_prompt", "query: "),
    ("--dense-path", "2_Dense", "dense_path", "2_Dense"),
    ("--hf-api-token", "hf_x", "hf_token", "hf_x"),
    ("--hf-token", "hf_x", "hf_token", "hf_x"),
    ("--hostname", "::", "hostname", "::"),
    ("--port", "3000", "port", 3000),
    ("-p", "3000", "port", 3000),
    ("--uds-path", "/tmp/socket", "uds_path", Path("/tmp/socket")),
    ("--huggingface-hub-cache", "/data", "huggingface_hub_cache", Path("/data")),
    ("--payload-limit", "2000000", "payload_limit", 2_000_000),
    ("--api-key", "k", "api_key", "k"),
    ("--json-output", None, "json_output", True),
    ("--disable-spans", None, "disable_spans", True),
    ("--otlp-endpoint", "http://localhost:4317", "otlp_endpoint", "http://localhost:4317"),
    ("--otlp-service-name", "n", "otlp_service_name", "n"),
    ("--prometheus-port", "9000", "prometheus_port", 9000),
    ("--cors-allow-origin", "https://a", "cors_allow_origin", ("https://a",)),
]

# Variables that mean something else here: what a container sets itself, and a socket between TEI's own processes.
NOT_READ = {"HOSTNAME", "UDS_PATH"}


def serve(*words: str) -> str:
    unset = {name: "" for setting in SETTINGS.values() for name in setting.variables if "API_KEY" not in name}
    result = CliRunner().invoke(cli.app, ["serve", *words], env=unset, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def words_of(flag: str, value: str | None) -> list[str]:
    return [flag] if value is None else [flag, value]


@pytest.mark.parametrize(("flag", "value", "setting", "given"), FLAGS)
def test_a_flag_is_taken(served: list[Settings], flag: str, value: str | None, setting: str, given: object) -> None:
    serve(*words_of(flag, value))
    if value is not None and flag.startswith("--"):
        serve(f"{flag}={value}")
    assert [getattr(settings, setting) for settings in served] == [given] * len(served)


@pytest.mark.parametrize(("flag", "value", "setting", "given"), FLAGS)
def test_a_variable_is_taken(flag: str, value: str | None, setting: str, given: object) -> None:
    if flag.startswith("--"):
        name = flag.removeprefix("--").replace("-", "_").upper()
        settings = Settings.load({}, {name: value or "true"})
        assert getattr(settings, setting) == (SETTINGS[setting].default if name in NOT_READ else given)


def test_all_of_a_launch_line_together(served: list[Settings]) -> None:
    seen = {"--default-prompt-name", "--hf-api-token", "-p"}
    words: list[str] = []
    for flag, value, _, _ in FLAGS:
        words += words_of(flag, value) if flag not in seen else []
        seen.add(flag)
    serve(*words)
    for flag, _, setting, _ in FLAGS:
        if flag not in {"--default-prompt-name"}:
            assert getattr(served[0], setting) != SETTINGS[setting].default or setting == "auto_truncate", flag


def test_settings_without_effect_are_one_log_line(served: list[Settings]) -> None:
    said = serve("--disable-spans", "--prometheus-port", "9000", "--port", "80")
    assert said.count("\n") == 1
    assert "settings without effect: disable_spans (log lines have no spans); prometheus_port (metrics are" in said
    assert serve("--port", "80") == ""


def test_a_dense_path_is_the_models_own_or_refused_by_name() -> None:
    settings = Settings.load({"dense_path": "2_Dense_1024/"}, {})
    settings.check_dense_path(["2_Dense_1024"])
    Settings.load({}, {}).check_dense_path(["2_Dense", "3_Dense"])
    for folders in (["2_Dense"], [], ["2_Dense_1024", "3_Dense"]):
        with pytest.raises(ConfigError, match=r"^dense_path 2_Dense_1024/ is not supported: .*modules\.json"):
            settings.check_dense_path(folders)


def test_a_model_is_not_opened_with_another_dense_path(tmp_path: Path) -> None:
    given = {"model_id": str(GOLDEN / "bert-cls-normalize"), "cache_dir": tmp_path, "dtype": "float32"}
    with pytest.raises(ConfigError, match=r"^dense_path 2_Dense is not supported: .* which are: none;"):
        open_engine(Settings.load({**given, "dense_path": "2_Dense"}, {}))
    open_engine(Settings.load(given, {})).close()


def test_a_repository_is_fetched_into_the_given_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[object] = []

    def fetch(repo: str, **options: object) -> str:
        folders.append(options["cache_dir"])
        raise LookupError("nothing is fetched in this test")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for variable in ("BEI_HUGGINGFACE_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        settings = Settings.load({"model_id": "a/b", "cache_dir": tmp_path}, {variable: "/data"})
        with pytest.raises(CheckpointError):
            build_engine(settings)
    assert folders == [Path("/data")] * 2


def test_traces_have_the_given_service_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    traces = open_traces(Settings.load({"otlp_endpoint": "http://c:4318", "otlp_service_name": "search"}, {}))
    assert traces is not None
    try:
        assert traces._provider.resource.attributes["service.name"] == "search"
    finally:
        traces.close()
