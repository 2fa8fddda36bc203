"""An S3 server on loopback, stores in memory that imitate Google's and Azure's, and models to put there."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from unittest import mock

import botocore.session
from fsspec.implementations.memory import MemoryFileSystem

from bei_core.checkpoint import Checkpoint
from bei_core.storage.backends import FileSystem
from bei_core.storage.objects import open_store
from tests.hub import as_bytes, f32, pack

BUCKET = "models"
AWS = {"aws_access_key_id": "AKIATEST", "aws_secret_access_key": "sesame", "aws_region": "eu-west-1"}
AWS_SECRET = json.dumps(AWS)

WEIGHTS = pack({"a": f32(1, 2), "b": f32(3)})
MODEL = as_bytes({"config.json": {"architectures": ["BertModel"]}, "tokenizer.json": {}, "model.safetensors": WEIGHTS})
SENTENCE = {
    **MODEL,
    **as_bytes(
        {
            "modules.json": [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}],
            "1_Pooling/config.json": {"pooling_mode": "mean"},
            "2_Dense/config.json": {"bias": False},
            "2_Dense/model.safetensors": pack({"linear.weight": f32(7)}),
        }
    ),
}
UNWANTED = dict.fromkeys(
    ["pytorch_model.bin", "README.md", "modeling.py", "onnx/model.onnx", "model.fp16.safetensors", "a/b/config.json"],
    b"not wanted",
)


def files_of(checkpoint: Checkpoint) -> set[str]:
    """The names of the files that were fetched."""
    found = (path.relative_to(checkpoint.folder) for path in checkpoint.folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found} - {".source.json"}


class S3Server:
    """moto's S3, running between `with` and its end, with one bucket; its address is for AWS_ENDPOINT_URL.

    Meanwhile the clients share what botocore reads from its files: S3's description, which is large, for each client.
    """

    def __enter__(self) -> S3Server:
        from moto.server import ThreadedMotoServer  # slow to import, and most tests do not need it

        create_loader = functools.cache(botocore.session.create_loader)
        self._shared = mock.patch("botocore.session.create_loader", create_loader)
        self._shared.start()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it writes a line a request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop()
        self._shared.stop()

    def store(self) -> FileSystem:
        """Its file system, with the bucket in it; AWS_ENDPOINT_URL must be set."""
        files, _ = open_store(f"s3://{BUCKET}", AWS_SECRET)
        if not files.exists(BUCKET):
            files.mkdir(BUCKET)
        return files


def put(files: FileSystem, folder: str, content: Mapping[str, bytes]) -> None:
    """Writes files into a folder of a store."""
    for name, data in content.items():
        files.pipe_file(f"{folder}/{name}", data)


class GoogleStore(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """A store whose listings have checksums, as Google's."""

    def find(self, path: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - fsspec's own options
        found = super().find(path, **options)
        return {name: info | {"md5Hash": self._digest(name)} for name, info in found.items()}

    def _digest(self, name: str) -> str:
        return base64.b64encode(hashlib.md5(MemoryFileSystem.cat_file(self, name)).digest()).decode()


class AzureStore(MemoryFileSystem):  # type: ignore[misc]
    """A store with adlfs's listings: no slash first, a quoted ETag, the MD5 in the content's settings."""

    def find(self, path: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - fsspec's own options
        return {name[1:]: self._listed(name, info) for name, info in super().find(path, **options).items()}

    def _listed(self, name: str, info: Mapping[str, Any]) -> dict[str, Any]:
        digest = hashlib.md5(MemoryFileSystem.cat_file(self, name)).digest()
        settings = {"content_type": "application/octet-stream", "content_md5": bytearray(digest)}
        return {**info, "name": name[1:], "etag": f'"0x{digest.hex()[:15]}"', "content_settings": settings}
