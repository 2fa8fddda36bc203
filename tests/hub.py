"""A Hugging Face hub on loopback: the part of its protocol that `huggingface_hub` needs to fetch a model.

Written against huggingface_hub 2.4 (`_snapshot_download.py`, `file_download.py`, `utils/_http.py`) and what
huggingface.co answers: revisions and trees under /api/models, files under /resolve with ETag and X-Repo-Commit, weights
by redirect to a second path with X-Linked-Etag and X-Linked-Size, errors by X-Error-Code. There is no Xet, so that
clients use plain HTTP. A data set is a repository, too, with all files in its root folder. Beside it, the files that a
repository or a model folder is made of.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

_API = re.compile(
    r"/api/(models|datasets)/(?P<repo>[^/]+(?:/[^/]+)?)(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)/?)?"
)
_RESOLVE = re.compile(r"/(datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_BLOB = re.compile(r"/blobs/(?P<digest>[0-9a-f]{64})")

# A tokenizer.json of a few words.
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "no", "[SEP]", "yes", "<|endoftext|>", "maybe")
TOKENIZER: Mapping[str, object] = {
    "added_tokens": [],
    "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {word: index for index, word in enumerate(_WORDS)}},
}

Stored: TypeAlias = tuple[str, NDArray[Any]]  # a safetensors dtype and the bits, in whatever dtype numpy has for them


def f32(*values: float) -> Stored:
    """A vector as stored."""
    return "F32", np.array(values, np.float32)


def pack(tensors: Mapping[str, Stored]) -> bytes:
    """A safetensors file."""
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return handmade(
        text + b" " * (-len(text) % 8), data
    )  # padded, as the format's writers do, so that data are aligned


def handmade(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header at all, of JSON or of bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def as_bytes(files: Mapping[str, object]) -> dict[str, bytes]:
    """The contents of files, by name: bytes as they are, anything else as JSON."""
    return {name: data if isinstance(data, bytes) else json.dumps(data).encode() for name, data in files.items()}


def write(folder: Path, files: Mapping[str, object]) -> Path:
    """The folder, with the files written into it."""
    for name, data in as_bytes(files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@dataclass
class Repository:
    """The commits of one repository; who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # needed to see it at all
    gate_token: str | None = None  # needed to read its files

    def commit(self, files: Mapping[str, bytes], *, ref: str = "main") -> str:
        """The hash of a new commit, which `ref` then names."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, data in sorted(files.items()):
            digest.update(name.encode() + b"\0" + data + b"\0")
        digest.update(str(len(self.commits)).encode())
        sha = digest.hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag or hash names."""
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    """The server, running between `with` and its end; `requests` lists what it was asked, as (method, path)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def store(self) -> str:
        """Where weights are redirected to: to a client another host, since huggingface_hub follows its own host's."""
        return f"http://localhost:{self._server.server_address[1]}"

    def add(self, repo: str, files: Mapping[str, bytes]) -> str:
        """The commit of `files`, on the main branch of a repository that is made where it is new."""
        return self.repositories.setdefault(repo, Repository()).commit(files)

    def files_read(self) -> set[str]:
        """The names of the files whose content was fetched."""
        found = (_RESOLVE.fullmatch(path) for method, path in self.requests if method == "GET")
        names = {match["name"] for match in found if match}
        blobs = {path.rpartition("/")[2] for method, path in self.requests if method == "GET" and _BLOB.fullmatch(path)}
        for repository in self.repositories.values():
            for files in repository.commits.values():
                names |= {name for name, data in files.items() if hashlib.sha256(data).hexdigest() in blobs}
        return names

    def stop(self) -> None:
        """Closes the port; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """A backlog for all connections that a client opens at once: with a full one, each would wait a second."""

    request_queue_size = 64


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """A handler class bound to the hub, as http.server makes its own instances."""

    class Handler(_Handler):
        served = hub

    return Handler


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.0"  # a connection a request, so that a stopped hub is gone for good
    served: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log nothing: `Hub.requests` has all requests."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.served.requests.append((self.command, path))
        if match := _BLOB.fullmatch(path):
            self._send_blob(match["digest"])
        elif match := _API.fullmatch(path):
            self._send_api(match["repo"], match["what"] or "revision", match["revision"] or "main")
        elif match := _RESOLVE.fullmatch(path):
            self._send_file(match["repo"], match["revision"], match["name"])
        else:
            self._refuse(404, None)

    def _find(self, repo: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and commit asked for; None after an error was sent."""
        repository = self.served.repositories.get(repo)
        if repository is None or not self._may(repository.token):
            self._refuse(401, "RepoNotFound")  # as the hub says it to strangers, so that private names stay private
            return None
        sha = repository.find(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository, sha

    def _send_api(self, repo: str, what: str, revision: str) -> None:
        found = self._find(repo, revision)
        if found is None:
            return
        repository, sha = found
        files = repository.commits[sha]
        body: object = {"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]}
        if what != "revision":
            asked = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()  # only paths-info sends a body
            names = parse_qs(asked).get("paths", files)
            found_files = [(name, files[name]) for name in names if name in files]
            body = [{"type": "file", "path": n, "size": len(d), "oid": _digest(d)[:40]} for n, d in found_files]
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repo: str, revision: str, name: str) -> None:
        found = self._find(repo, revision)
        if found is None:
            return
        repository, sha = found
        data = repository.commits[sha].get(name)
        if not self._may(repository.gate_token):
            self._refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
        elif data is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": sha})
        elif name.endswith(".safetensors"):
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{_digest(data)}"'}
            self._send(
                302, b"", {"Location": f"{self.served.store}/blobs/{_digest(data)}", "X-Repo-Commit": sha, **linked}
            )
        else:
            self._send_data(data, {"X-Repo-Commit": sha})

    def _send_blob(self, digest: str) -> None:
        for repository in self.served.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if _digest(data) == digest:
                        self._send_data(data, {})
                        return
        self._refuse(404, "EntryNotFound")

    def _send_data(self, data: bytes, headers: Mapping[str, str]) -> None:
        """The bytes, or the range of them that was asked for."""
        etag = {"ETag": f'"{_digest(data)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if asked is None:
            self._send(200, data, {**headers, **etag})
            return
        begin, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        self._send(206, data[begin : end + 1], {**headers, **etag, "Content-Range": f"bytes {begin}-{end}/{len(data)}"})

    def _may(self, token: str | None) -> bool:
        """Whether the request has the token, if the repository needs one."""
        return token is None or self.headers["Authorization"] == f"Bearer {token}"

    def _refuse(self, status: int, code: str | None, headers: Mapping[str, str] | None = None) -> None:
        message = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, json.dumps({"error": code}).encode(), {**message, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(data: bytes) -> str:
    """The hex SHA-256, the ETag of a file."""
    return hashlib.sha256(data).hexdigest()
