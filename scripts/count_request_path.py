"""Counts the functions and files of `bei_core` that one `POST /v1/embeddings` passes, from the ASGI call to the reply.

    PYTHONPATH=packages:. python scripts/count_request_path.py [--list]

Needs Python 3.11. The engine is the tests' fake one. Functions of every thread count, each once, however often it runs;
comprehensions and lambdas count as part of the function around them, properties as attributes. A change of file is a
call into another file than that of the call before it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import FrameType

from starlette.types import ASGIApp, Message, Scope

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.http.app import make_app
from bei_core.http.disconnects import WATCH, Watch
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from tests.fakes import FakeEngine

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "packages" / "bei_core"
MODEL = REPOSITORY / ".models" / "all-MiniLM-L6-v2"  # its tokenizer
BODY = b'{"input": "how a request travels", "model": "any"}'
SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": "/v1/embeddings",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
    "extensions": {WATCH: Watch()},  # as `bei serve` does
}
INNER = re.compile(r"(\.<locals>)?\.<(genexpr|listcomp|dictcomp|setcomp|lambda)>")


class Calls:
    """The calls into `bei_core`, in the order in which they are made: file and function of each."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.is_on = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """One event of the interpreter's profiler."""
        code = frame.f_code
        if self.is_on and event == "call" and code.co_filename.startswith(str(PACKAGE)):
            name = INNER.sub("", code.co_qualname)
            if not is_property(frame, name):
                self.made.append((str(Path(code.co_filename).relative_to(PACKAGE)), name))


def is_property(frame: FrameType, name: str) -> bool:
    """Whether the function of this qualified name is a property of its class."""
    owner, _, attribute = name.rpartition(".")
    return isinstance(getattr(frame.f_globals.get(owner), attribute, None), property)


async def post(app: ASGIApp) -> int:
    """Sends the request; returns the status of the reply."""
    replies: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        replies.append(message)

    await app(dict(SCOPE), receive, send)
    return int(replies[0]["status"])


async def record(app: ASGIApp, calls: Calls) -> None:
    """Records the calls of one request, after another one that fills the caches. Raises SystemExit if it fails."""
    await post(app)
    await asyncio.sleep(0.2)  # the engine's thread waits again
    calls.is_on = True
    status = await post(app)
    calls.is_on = False
    if status != 200:
        raise SystemExit(f"the request ended with status {status}")


def main() -> None:
    """Counts and prints."""
    calls, checkpoint = Calls(), Checkpoint(folder=MODEL, source="owner/name", revision="1" * 40)
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    opened = Opened(FakeEngine(), read_spec(checkpoint), MODEL / "tokenizer.json", manifest)
    service = Service(opened, Settings.load({"model_id": "owner/name"}, {}))
    threading.setprofile(calls)
    service.start()
    sys.setprofile(calls)
    try:
        asyncio.run(record(make_app(service)[1], calls))
    finally:
        sys.setprofile(None)
        service.close()
    files = [file for file, _ in calls.made]
    changes = sum(one != other for one, other in pairwise(files))
    print(f"{len(set(calls.made))} functions in {len(set(files))} files, {changes} changes of file")
    for file, name in dict.fromkeys(calls.made) if "--list" in sys.argv else ():
        print(f"  {file} {name}")


if __name__ == "__main__":
    main()
