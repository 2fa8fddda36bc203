"""Options that a model cannot do are refused; those that no model can do, before an engine is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bei_core.config.settings import SETTINGS
from bei_core.errors import ConfigError
from bei_core.jobs import JobOptions, RayOptions, embed
from bei_core.jobs.options import SETTINGS_OF_SERVERS
from bei_core.models.modules import Classifier
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.test_job import LABELS, command, contents, run

# The settings that a job honours. A new setting has to be put here or into SETTINGS_OF_SERVERS.
HONOURED = """
model_id models revision dtype pooling dense_path engine devices tensor_parallel_size torch_compile default_prompt
default_prompt_name rerank_template auto_truncate trt_llm quantization_type smooth_quant_alpha calib_dataset calib_size
calib_max_seq_length quality_mean_cosine quality_top_label_agreement quality_rank_correlation max_batch_tokens
max_batch_requests engine_process log_level json_output cache_dir cache_size_gb huggingface_hub_cache engine_store
refresh verify hf_token engine_store_secret checkpoint_secret
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"job": "rerank", "query_column": "id"}, "is a model of kind embedding; it can do: embed, tokens"),
        ({"dimensions": 9}, "`dimensions` must be between 1 and 8"),
        ({"query_column": "id"}, "the job embed takes no query_column"),
        ({"job": "tokens", "chunk": True}, "chunk is for embeddings"),
    ],
)
def test_a_job_that_the_model_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, options: dict[str, Any], said: str
) -> None:
    opens(monkeypatch)
    with pytest.raises(ConfigError, match=said):
        run(source, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dimensions": 0}, "`dimensions` must be at least 1"),
        ({"job": "embed", "query_column": "id"}, "the job embed takes no query_column"),
        ({"job": "rerank"}, "the job rerank needs query_column"),
        ({"job": "classify", "output_dtype": "int8"}, "the job classify takes no output_dtype"),
        ({"job": "tokens", "dimensions": 4}, "the job tokens takes no dimensions"),
        ({"job": "sparse", "normalize": False, "dimensions": 2}, "the job sparse takes no dimensions, normalize"),
        ({"sink": "faiss:/tmp/x#docs"}, "`sink` faiss writes one index into a file, and has no table"),
        ({"sink": "elastic:http://host"}, "with a kind of lancedb, qdrant, faiss, pgvector, milvus"),
        ({"query_column": "nothing"}, "has no column 'nothing'; it has id, text"),
    ],
)
def test_options_that_no_model_takes_are_refused_before_an_engine_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, options: dict[str, Any], said: str
) -> None:
    monkeypatch.delattr("bei_core.jobs.run.open_engine")
    with pytest.raises(ConfigError, match=said):
        run(source, tmp_path / "out", **options)


def test_every_setting_is_honoured_or_refused() -> None:
    assert sorted([*HONOURED.split(), *SETTINGS_OF_SERVERS]) == sorted(SETTINGS)


@pytest.mark.parametrize("name", sorted(SETTINGS_OF_SERVERS))
def test_a_setting_of_servers_is_refused(tmp_path: Path, name: str) -> None:
    said = f"a job takes no settings of a server; leave out {name}"
    with pytest.raises(ConfigError, match=said):
        embed("a.jsonl", tmp_path / "out", settings={"model_id": "owner/name", name: "1"})
    setting = SETTINGS[name]
    value = (
        ()
        if setting.plain is bool
        else (setting.choices or ("https://host",))[:1]
        if setting.limits is None
        else ("1",)
    )
    result = command("a.jsonl", "--output", str(tmp_path / "out"), setting.flags[-1], *value)
    assert isinstance(result.exception, ConfigError), result.output
    assert str(result.exception) == said


def test_the_help_has_the_flags_that_a_job_honours() -> None:
    shown = command("--help").stdout
    for name, setting in SETTINGS.items():
        assert all((f"{flag} " in shown) == (name not in SETTINGS_OF_SERVERS) for flag in setting.flags[-1:]), name


def test_a_variable_of_the_environment_for_servers_does_not_concern_a_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    opens(monkeypatch)
    monkeypatch.setenv("BEI_PORT", "8000")
    assert run(source, tmp_path / "out").num_rows == 100


@pytest.mark.parametrize("settings", [{"max_batch_requests": 3}, {"max_batch_tokens": 20}])
def test_batches_have_the_size_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, settings: dict[str, int]
) -> None:
    engine = opens(monkeypatch)
    given = {"model_id": "owner/name", **settings}
    embed(source, tmp_path / "out", settings=given, options=JobOptions(rows_per_part=50))
    sizes = {"max_batch_requests": max(map(len, engine.batches))}
    sizes["max_batch_tokens"] = max(sum(map(len, batch)) for batch in engine.batches)
    assert all(size - 3 <= sizes[name] <= size for name, size in settings.items()), sizes
    with pytest.raises(ConfigError, match=f"is the output of another job: its `options` was .*{next(iter(settings))}"):
        embed(source, tmp_path / "out", settings={"model_id": "owner/name"}, options=JobOptions(rows_per_part=50))


def test_several_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 models are given; give one"):
        embed("a.jsonl", tmp_path / "out", settings={"models": ["a/b", "c/d"]})


def test_options_of_embeddings_are_refused_for_a_model_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    opens(monkeypatch, Classifier(LABELS, "softmax"))
    with pytest.raises(ConfigError, match="the job classify takes no normalize; leave out what is for embeddings"):
        run(source, tmp_path / "out", normalize=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ray_workers": 0}, "at least 1"),
        ({"gpus_per_worker": -1.0}, "`gpus_per_worker`"),
        ({"ray": ""}, "`ray` must be"),
        ({"ray_workers": "2"}, "`ray_workers` is '2': Expected `int`"),
    ],
)
def test_options_of_workers_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RayOptions(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": "id"}, "`keep` is 'id': Expected `array`"),
        ({"output_dtype": "float64"}, "`output_dtype` is 'float64': expected one of float32, float16, int8, bit"),
        ({"job": "embedding"}, "`job` is 'embedding': expected one of auto"),
        ({"normalize": "false"}, "`normalize` is 'false': Expected `bool`"),
        ({"dimensions": 8.0}, "`dimensions` is 8.0: Expected `int"),
        ({"rows_per_part": "8"}, "`rows_per_part` is '8': Expected `int`"),
    ],
)
def test_an_option_of_another_type_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JobOptions(**options)


@pytest.mark.parametrize("sink", ["qdrant:folder", "milvus:file.db"])
def test_a_database_for_one_process_is_refused_on_ray(tmp_path: Path, source: Path, sink: str) -> None:
    kind, path = sink.split(":")
    with pytest.raises(
        ConfigError, match=f"{kind}:{Path.cwd()}/{path}#embeddings is for one process; give the URL of a server"
    ):
        embed(source, tmp_path / "out", settings={"model_id": "o/n"}, options=JobOptions(sink=sink), ray=RayOptions())
    assert not (tmp_path / "out").exists() or not contents(tmp_path / "out")
