"""Checkpoints of Google's and Azure's stores, and of any other of fsspec's: listings as their drivers give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bei_core.checkpoint import resolve
from bei_core.errors import CheckpointError
from tests.hub import f32, pack
from tests.stores import MODEL, SENTENCE, UNWANTED, AzureStore, GoogleStore, files_of, put


@pytest.mark.parametrize(
    ("url", "kind", "path", "secret"),
    [
        ("gs://bucket/m", GoogleStore, "bucket/m", {"private_key": "sesame", "client_email": "a@b"}),
        ("azure://account/container/m", AzureStore, "container/m", {"account_key": "sesame"}),
        ("https://account.blob.core.windows.net/container/m", AzureStore, "container/m", {"account_key": "sesame"}),
        ("memory://plain/m", MemoryFileSystem, "plain/m", None),
    ],
)
def test_google_azure_and_any_other_of_fsspecs(
    url: str,
    kind: type[MemoryFileSystem],
    path: str,
    secret: dict[str, str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr("fsspec.filesystem", lambda protocol, **options: kind())
    text = json.dumps(secret) if secret else None
    put(kind(), path, {**SENTENCE, **UNWANTED})
    first = resolve(url, secret=text, root=tmp_path)
    assert files_of(first) == set(SENTENCE)
    put(kind(), path, {"model.safetensors": pack({"a": f32(9, 2), "b": f32(3)})})
    second = resolve(url, secret=text, root=tmp_path)
    assert second.revision != first.revision
    assert float(second.tensors().f32("a")[0]) == 9


@pytest.mark.parametrize(("url", "kind"), [("gs://bucket/m", GoogleStore), ("azure://account/bucket/m", AzureStore)])
def test_the_checksums_of_google_and_azure_are_held_against_the_content(
    url: str, kind: type[MemoryFileSystem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tampering(kind):  # type: ignore[misc]
        def cat_file(self, path: str, **options: Any) -> bytes:  # noqa: ANN401 - fsspec's own options
            data = bytes(super().cat_file(path, **options))
            return data[:-1] + b"\x7f" if path.endswith(".safetensors") else data

    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr("fsspec.filesystem", lambda protocol, **options: Tampering())
    put(Tampering(), "bucket/m", MODEL)
    with pytest.raises(CheckpointError, match=rf"^{url}/model\.safetensors is damaged or was tampered with"):
        resolve(url, root=tmp_path)
