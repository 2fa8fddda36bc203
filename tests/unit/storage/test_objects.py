"""Object stores by URL: drivers, credentials, errors."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bei_core.errors import CheckpointError
from bei_core.storage.backends import is_store, redact, redact_input
from bei_core.storage.errors import DriverMissingError, translate_store_errors
from bei_core.storage.objects import open_store

AWS = {"aws_access_key_id": "AKIA0", "aws_secret_access_key": "sesame", "aws_region": "eu-west-1"}
GOOGLE = {"private_key_id": "1", "private_key": "-----BEGIN sesame", "client_email": "a@b.iam.gserviceaccount.com"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls of fsspec, as (protocol, options); each gets a store in memory."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def filesystem(protocol: str, *, use_listings_cache: bool, skip_instance_cache: bool, **options: object) -> object:
        assert (skip_instance_cache, use_listings_cache) == (True, False)
        asked.append((protocol, options))
        return MemoryFileSystem()

    monkeypatch.setattr("fsspec.filesystem", filesystem)
    return asked


@pytest.mark.parametrize(
    ("url", "protocol", "options", "path"),
    [
        ("s3://bucket/a/b/", "s3", {}, "bucket/a/b"),
        ("s3a://bucket", "s3", {}, "bucket"),
        ("gs://bucket/a", "gs", {}, "bucket/a"),
        ("gcs://bucket/a", "gs", {}, "bucket/a"),
        ("azure://account/container/a/b", "abfs", {"account_name": "account"}, "container/a/b"),
        ("https://account.blob.core.windows.net/container/a", "abfs", {"account_name": "account"}, "container/a"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfs", {"account_name": "account"}, "container/a"),
        ("az://container/a", "abfs", {}, "container/a"),
        ("abfs://container/a", "abfs", {}, "container/a"),
        ("file:///srv/models/a", "file", {"auto_mkdir": True}, "/srv/models/a"),
        ("memory://a/b", "memory", {}, "a/b"),
    ],
)
def test_a_url_says_driver_and_path(
    made: list[tuple[str, dict[str, Any]]], url: str, protocol: str, options: dict[str, Any], path: str
) -> None:
    assert is_store(url)
    assert open_store(url)[1] == path
    assert made == [(protocol, options)]


@pytest.mark.parametrize(
    ("url", "secret", "options"),
    [
        ("s3://b/a", AWS, {"key": "AKIA0", "secret": "sesame", "client_kwargs": {"region_name": "eu-west-1"}}),
        (
            "s3://b/a",
            {"access_key_id": "AKIA0", "secret_access_key": "sesame", "session_token": "t"},
            {"key": "AKIA0", "secret": "sesame", "token": "t"},
        ),
        (
            "gs://b/a",
            GOOGLE,
            {"token": {**GOOGLE, "type": "service_account", "token_uri": "https://oauth2.googleapis.com/token"}},
        ),
        ("azure://acc/c/a", {"account_key": "sesame"}, {"account_name": "acc", "account_key": "sesame"}),
        ("az://c/a", {"connection_string": "sesame"}, {"connection_string": "sesame"}),
        ("az://c/a", {"account_name": "acc", "sas_token": "sesame"}, {"account_name": "acc", "sas_token": "sesame"}),
    ],
)
def test_a_secret_becomes_the_drivers_options(
    made: list[tuple[str, dict[str, Any]]], url: str, secret: dict[str, str], options: dict[str, Any]
) -> None:
    open_store(url, json.dumps(secret))
    assert made[0][1] == options


@pytest.mark.parametrize(
    ("url", "secret", "said"),
    [
        ("s3://b/a", "sesame", "s3://b/a: the secret is not a JSON object; S3 takes"),
        ("s3://b/a", '["sesame"]', "is not a JSON object"),
        ("s3://b/a", json.dumps({"aws_access_key_id": "sesame"}), "the secret has no secret_access_key; S3 takes"),
        ("gs://b/a", json.dumps({"private_key": "sesame"}), "the secret has no client_email; Google Cloud Storage"),
        ("azure://a/c/p", json.dumps({"key": "sesame"}), "the secret has no account_key; Azure Blob Storage"),
        ("azure://account", "", "azure://account names no container; write azure://account/container"),
        ("s3:///a", "", "names no bucket; write s3://bucket/folder"),
        ("ftp://host/a", "", "no object store has this scheme; known are s3, s3a, gs"),
    ],
)
def test_the_error_for_a_bad_url_or_secret_does_not_contain_it(url: str, secret: str, said: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        open_store(url, secret or None)
    assert said in str(refused.value)
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("s3://b/a", "pip install 'bei-core[s3]' (or pip install s3fs)"),
        ("gs://b/a", "pip install 'bei-core[gcs]' (or pip install gcsfs)"),
        ("azure://a/c/p", "pip install 'bei-core[azure]' (or pip install adlfs)"),
    ],
)
def test_a_missing_driver_names_its_command(monkeypatch: pytest.MonkeyPatch, url: str, command: str) -> None:
    for module in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, module, None)  # what an import of a missing package meets
    registry = importlib.import_module("fsspec.registry")  # the package's attribute of that name is the dict in it
    for protocol in ("s3", "gs", "abfs"):  # imported by another test, perhaps
        monkeypatch.delitem(registry._registry, protocol, raising=False)
    with pytest.raises(DriverMissingError) as refused:
        open_store(url)
    assert command in str(refused.value)
    assert refused.value.exit_status == os.EX_UNAVAILABLE


def test_what_is_printed_of_a_url_has_no_signature_and_no_password() -> None:
    assert redact("https://host/m.tar.gz?X-Amz-Signature=sesame#sesame") == "https://host/m.tar.gz"
    assert redact("https://user:sesame@host/m.tar.gz") == "https://host/m.tar.gz"
    assert redact("https://account.blob.core.windows.net/c/a?sesame") == "https://account.blob.core.windows.net/c/a"
    assert redact("s3://bucket/model?sesame") == redact("s3://bucket/model#1") == "s3://bucket/model"
    assert redact_input("s3://user:sesame@bucket/day=1/a?.jsonl#1") == "s3://bucket/day=1/a?.jsonl#1"
    assert redact_input("s3://bucket/day=1/a?.jsonl?x=1&sig=sesame") == "s3://bucket/day=1/a"
    assert redact_input("https://host/a?sesame") == "https://host/a"
    assert (
        redact("abfs://container@account.dfs.core.windows.net/a") == "abfs://container@account.dfs.core.windows.net/a"
    )


def refuse(fault: Exception) -> Callable[[], None]:
    def call() -> None:
        raise fault

    return call


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize(
    ("fault", "secret", "said"),
    [
        (FileNotFoundError("b/a"), None, "s3://b/a: does not exist: b/a"),
        (PermissionError("Forbidden"), AWS, "access denied: Forbidden. Credentials: the secret that was given; S3"),
        (NoCredentialsError("none"), None, "NoCredentialsError: none. Credentials: no secret was given, so the SDK's"),
        (OSError("the key sesame is bad"), AWS, "s3://b/a: the key *** is bad."),
        (RuntimeError("a\nb"), None, "s3://b/a: RuntimeError: a."),
        (CheckpointError("ours"), None, "ours"),
    ],
)
def test_the_error_of_a_driver_has_a_remedy(fault: Exception, secret: dict[str, str] | None, said: str) -> None:
    with (
        pytest.raises(CheckpointError) as refused,
        translate_store_errors("s3://b/a", json.dumps(secret) if secret else None),
    ):
        refuse(fault)()
    assert said in str(refused.value)
    assert "sesame" not in str(refused.value)


def test_the_stores_that_need_no_driver_are_real() -> None:
    files, path = open_store("memory://objects/a")
    files.pipe_file(f"{path}/x", b"1")
    assert open_store("memory://objects/a")[0].cat_file(f"{path}/x") == b"1"
    assert not is_store("/srv/models")
    assert is_store("azure://a/c/p")
