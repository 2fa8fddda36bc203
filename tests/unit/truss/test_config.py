"""config.yaml, and the secrets that come with it; tests/e2e/test_truss.py has truss itself accept it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from bei_core.config.settings import Settings

ROOT = Path(__file__).parents[3]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())


class SecretNotFoundError(Exception):
    """Like truss's, which is no KeyError."""


class TrussSecrets(Mapping[str, str]):
    """Like truss's: a secret without a value raises, and they cannot be listed."""

    def __init__(self, **values: str) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        if name not in self._values:
            raise SecretNotFoundError(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._values)


def pins(lock: str) -> dict[str, set[str]]:
    """Versions of each package of a lock file; it may have several, for different Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_the_model_is_pinned_to_a_commit() -> None:
    settings = Settings.from_truss_config(CONFIG, {})
    assert settings.model_id == "sentence-transformers/all-MiniLM-L6-v2"
    assert re.fullmatch("[0-9a-f]{40}", settings.revision or "")


def test_overload_is_refused_by_bei_before_truss_makes_it_wait() -> None:
    assert CONFIG["runtime"]["predict_concurrency"] > Settings.from_truss_config(CONFIG, {}).max_concurrent_requests


@pytest.mark.parametrize("line", CONFIG["requirements"])
def test_the_image_has_the_versions_that_are_tested(line: str) -> None:
    requirement = Requirement(line)
    pyproject = re.findall(rf'^  "({requirement.name}[^\w-].*?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    versions = pins("dev.lock")[requirement.name]
    assert {str(requirement.specifier)} == {f"=={version}" for version in versions}, "update config.yaml to dev.lock"
    assert all(version in Requirement(pyproject[0]).specifier for version in versions)
    assert pins("truss-server.lock")[requirement.name] == versions, "run scripts/test_envs.sh lock truss"


@pytest.mark.parametrize("lock", ["truss.lock", "truss-server.lock"])
def test_locks_name_no_host(lock: str) -> None:
    assert not re.search(r"https?:|^-i|index", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("secrets", "expected"),
    [
        ({"hf_access_token": "a"}, ("a", None)),
        ({"hf_token": "a\n"}, ("a", None)),
        ({"hf_access_token": "a", "hf_token": "b"}, ("a", None)),
        ({"api_key": "k"}, (None, "k")),
        ({}, (None, None)),
    ],
)
def test_secrets_become_settings(secrets: dict[str, str], expected: tuple[str | None, str | None]) -> None:
    declared = ("hf_access_token", "hf_token", "unrelated", *secrets)  # api_key needs a value if it is declared
    config = {"secrets": dict.fromkeys(declared)}
    settings = Settings.from_truss_config(config, {}, TrussSecrets(**secrets))
    assert (settings.hf_token, settings.api_key) == expected


def test_an_undeclared_secret_is_not_read() -> None:
    assert Settings.from_truss_config({}, {}, TrussSecrets(hf_access_token="a")).hf_token is None


def test_a_declared_secret_without_a_value_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Settings.from_truss_config({"secrets": {"hf_access_token": None}}, {}, TrussSecrets())
    assert "hf_access_token" in caplog.text


def test_the_secret_that_a_trt_llm_block_names() -> None:
    repository = {"source": "HF", "repo": "a/b", "runtime_secret_name": "mine"}
    block = {"build": {"base_model": "encoder", "checkpoint_repository": repository}}
    config = {"secrets": {"mine": None, "hf_access_token": None}, "model_metadata": {"bei": {"trt_llm": block}}}
    secrets = TrussSecrets(mine="a", hf_access_token="b")
    assert Settings.from_truss_config(config, {}, secrets).hf_token == "a"


@pytest.mark.parametrize(
    ("source", "name", "setting"),
    [
        ("HF", "mine", "hf_token"),
        ("S3", "mine", "checkpoint_secret"),
        ("GCS", "mine", "checkpoint_secret"),
        ("AZURE", "mine", "checkpoint_secret"),
        ("REMOTE_URL", "mine", "checkpoint_secret"),
        ("S3", "hf_access_token", "hf_token"),  # truss's default, which is no bucket's
    ],
)
def test_the_named_secret_goes_where_the_source_needs_it(source: str, name: str, setting: str) -> None:
    repository = {"source": source, "repo": "s3://bucket/model", "runtime_secret_name": name}
    block = {"build": {"base_model": "encoder", "checkpoint_repository": repository}}
    config = {"secrets": {name: None}, "model_metadata": {"bei": {"trt_llm": block}}}
    settings = Settings.from_truss_config(config, {}, TrussSecrets(**{name: "a"}))
    assert {"hf_token": settings.hf_token, "checkpoint_secret": settings.checkpoint_secret}[setting] == "a"
    assert [settings.hf_token, settings.checkpoint_secret].count(None) == 1


def test_a_secret_of_the_checkpoint_needs_no_trt_llm_block() -> None:
    settings = Settings.from_truss_config(
        {"secrets": {"checkpoint_secret": None}}, {}, TrussSecrets(checkpoint_secret="a")
    )
    assert settings.checkpoint_secret == "a"


def test_the_environment_wins_over_secrets() -> None:
    config = {"secrets": {"hf_access_token": None}}
    assert Settings.from_truss_config(config, {"HF_TOKEN": "e"}, TrussSecrets(hf_access_token="s")).hf_token == "e"


def test_a_secret_is_not_shown() -> None:
    settings = Settings.from_truss_config({"secrets": {"api_key": None}}, {}, TrussSecrets(api_key="hidden"))
    assert "hidden" not in repr(settings)
