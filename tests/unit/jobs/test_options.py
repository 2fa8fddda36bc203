"""Options that a model cannot do are refused; those that no model can do, before an engine is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bei_core.errors import ConfigError
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.test_job import run


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
        ({"query_column": "nothing"}, "has no column 'nothing'; it has id, text"),
    ],
)
def test_options_that_no_model_takes_are_refused_before_an_engine_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, options: dict[str, Any], said: str
) -> None:
    monkeypatch.delattr("bei_core.jobs.run.open_engine")
    with pytest.raises(ConfigError, match=said):
        run(source, tmp_path / "out", **options)
