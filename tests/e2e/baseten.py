"""A local imitation of the parts of Baseten that `truss push`, `truss predict` and clients of a deployment use.

The API (GraphQL) and its object store take what push sends; the gateway has a deployment's addresses and asks for the
key, as docs.baseten.co describes both. Anything else is a 404, so that a new version of truss which asks for more is
seen to.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tests.fakes import SAFETY_S

KEY = "a-key-of-baseten"
MODEL, DEPLOYMENT = "abcd1234", "dep5678"
TEAM = {"id": "t1", "name": "team", "default": True}

_SYNC = re.compile(rf"^/(?:environments/production|deployment/{DEPLOYMENT})/sync(/.*)$")
_PREDICT = re.compile(rf"^/(?:environments/production|deployment/{DEPLOYMENT})/predict$")
_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


@dataclass
class Upload:
    """What a push sent."""

    archive: bytes
    config: dict[str, Any]  # the configuration beside the archive, as truss resolved it
    environment: str | None

    def unpack(self, folder: Path) -> Path:
        """The folder, with what was uploaded in it."""
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as archive:
            archive.extractall(folder, filter="data")
        return folder


@dataclass
class Route:
    """Where the gateway sends requests: a container's address, and the paths that its proxy rewrites."""

    url: str
    rewrites: Mapping[str, str] = field(default_factory=dict)


class Baseten:
    """A Baseten without models; it runs during the `with` block."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self.uploads: list[Upload] = []
        self.operations: list[str] = []
        self.route: Route | None = None
        self._name: str | None = None
        handler = type("Handler", (_Handler,), {"baseten": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Baseten:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SAFETY_S)

    @property
    def url(self) -> str:
        """Of the API, and of the gateway before the deployment's own path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables that make truss use this Baseten only."""
        return {"BASETEN_TRUSS_AUTH_REMOTE_URL": self.url, "BASETEN_TRUSS_AUTH_API_KEY": KEY}

    def store(self, path: str, content: bytes) -> None:
        """An object of the store."""
        self._objects[path] = content

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL query. Raises KeyError for one that this Baseten does not know."""
        operation = next(name for name in self._operations if re.search(rf"\b{name}\b", query))
        self.operations.append(operation)
        return self._operations[operation](query, variables)

    @property
    def _operations(self) -> dict[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]]:
        """The handler of each query, by a word in the query; specific words come first."""
        return {
            "truss_validation": lambda *_: {"truss_validation": {"success": True, "details": "{}"}},
            "model_s3_upload_credentials": lambda *_: {"model_s3_upload_credentials": self._credentials()},
            "create_model_from_truss": lambda *query: {"create_model_from_truss": self._created(*query)},
            "create_model_version_from_truss": lambda *query: {
                "create_model_version_from_truss": self._created(*query)
            },
            "models": lambda *_: {"models": [] if self._name is None else [self._model()]},
            "model": lambda *_: {"model": self._model()},
            "teams": lambda *_: {"teams": [TEAM]},
        }

    def _credentials(self) -> dict[str, str]:
        """Truss passes all but the first two to boto3, which therefore uploads to this server too."""
        return {
            "s3_bucket": "trusses",
            "s3_key": f"{len(self.uploads)}.tgz",
            "aws_access_key_id": "id",
            "aws_secret_access_key": "secret",
            "aws_session_token": "token",
            "endpoint_url": self.url,
            "region_name": "us-east-1",
        }

    def _created(self, query: str, _: Mapping[str, Any]) -> dict[str, Any]:
        """A model, or a further version of it."""
        given = dict(re.findall(r'(\w+): "([^"]*)"', query))
        self._name = given.get("name", self._name)
        config = json.loads(base64.b64decode(given["config"]))
        self.uploads.append(Upload(self._objects[f"/trusses/{given['s3_key']}"], config, given.get("environment_name")))
        oracle = {"id": MODEL, "name": self._name, "hostname": self.url}
        return {"model_version": {"id": DEPLOYMENT, "oracle": oracle, "instance_type": {"name": "any"}}}

    def _model(self) -> dict[str, Any]:
        version = {"id": DEPLOYMENT, "semver": "1", "truss_hash": "", "truss_signature": "", "is_draft": False}
        version |= {"is_primary": True, "current_model_deployment_status": {"status": "ACTIVE"}}
        facts = {"id": MODEL, "name": self._name, "hostname": self.url, "team": TEAM}
        return {**facts, "versions": [version], "primary_version": version}


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    baseten: ClassVar[Baseten]
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the head and the body of a reply in one segment
    timeout = SAFETY_S

    def do_POST(self) -> None:
        if self.path != "/graphql/":
            return self._forward()
        asked = json.loads(self._body())
        try:
            found: dict[str, Any] = {"data": self.baseten.answer(asked["query"], asked.get("variables") or {})}
        except StopIteration:
            found = {"errors": [{"message": f"this Baseten does not know {asked['query']}"}]}
        self._reply(200, json.dumps(found).encode(), {"content-type": "application/json"})

    def do_GET(self) -> None:
        self._forward()

    def do_PUT(self) -> None:
        body = self._body()
        chunked = "aws-chunked" in self.headers.get("content-encoding", "")
        self.baseten.store(urlsplit(self.path).path, _unchunked(body) if chunked else body)
        self._reply(200, b"", {"etag": '"0"'})

    def log_message(self, *_: object) -> None:
        """Log nothing, because the tests show the servers' logs."""

    def _forward(self) -> None:
        """The gateway: the key is asked for, and the deployment's part of the path taken off."""
        body = self._body()
        if self.headers.get("authorization") not in {f"Api-Key {KEY}", f"Bearer {KEY}"}:
            return self._reply(403, b'{"error": "wrong key"}', {"content-type": "application/json"})
        route, inner = self.baseten.route, _inner_path(self.path)
        if route is None or inner is None:
            return self._reply(404, b'{"error": "no such deployment"}', {"content-type": "application/json"})
        connection = http.client.HTTPConnection(urlsplit(route.url).netloc, timeout=SAFETY_S)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        connection.request(self.command, route.rewrites.get(inner, inner), body or None, headers)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        self._reply(reply.status, content, {n: v for n, v in reply.getheaders() if n.lower() not in _HOP})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _inner_path(path: str) -> str | None:
    """The path in the container; None if the path is not that of a deployment."""
    if found := _SYNC.match(path):
        return found[1]
    return "/v1/models/model:predict" if _PREDICT.match(path) else None


def _unchunked(body: bytes) -> bytes:
    """The content of a body in Amazon's own chunks: size;signature, content, and headers after the last."""
    parts: list[bytes] = []
    rest = body
    while True:
        head, _, rest = rest.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(rest[:size])
        rest = rest[size + 2 :]
