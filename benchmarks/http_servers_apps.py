"""The fake embedding application of http_servers.py for each kind of server library, and how to start each server."""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import Awaitable, Callable
from importlib import import_module as load
from typing import Any, TypeAlias

import httptools
import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from bei_core.config.settings import Settings
from bei_core.http.limits import BodyBudget
from bei_core.http.server.connection import Connection
from bei_core.http.server.pool import Pool

Foreign: TypeAlias = Any  # an object of a library that is not a dependency of this project
Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

ROW = np.random.default_rng(0).standard_normal(384).astype(np.float32)


class Body(msgspec.Struct):
    """The request body."""

    input: str
    model: str
    encoding_format: str = "float"


BODIES = msgspec.json.Decoder(Body)
REPLIES = msgspec.json.Encoder()


def render(row: npt.NDArray[np.float32], encoding_format: str) -> bytes:
    """The OpenAI reply for one vector f32[384]."""
    vector = base64.b64encode(row.tobytes()).decode() if encoding_format == "base64" else row
    item = {"object": "embedding", "index": 0, "embedding": vector}
    reply = {"object": "list", "data": [item], "model": "m", "usage": {"prompt_tokens": 24, "total_tokens": 24}}
    return (
        REPLIES.encode(reply) if encoding_format == "base64" else orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    )


async def answer(body: bytes) -> bytes:
    """The reply to one body; the text "slow" takes a second, for the probes."""
    request = BODIES.decode(body)
    if request.input == "slow":
        await asyncio.sleep(1.0)
    loop = asyncio.get_running_loop()
    engine: asyncio.Future[npt.NDArray[np.float32]] = loop.create_future()
    loop.call_soon(engine.set_result, ROW)
    return render(await engine, request.encoding_format)


def report_disconnect(*_: object) -> None:
    """Prints that a library reported that a client disconnected."""
    print("GONE", flush=True)


async def answer_unless_gone(body: bytes, disconnected: Callable[[], Awaitable[object]]) -> bytes | None:
    """The reply, or None if `disconnected` ends first. Watches only the slow requests of the probes."""
    if b'"slow"' not in body:
        return await answer(body)
    work, gone = asyncio.ensure_future(answer(body)), asyncio.ensure_future(disconnected())
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        gone.cancel()
        return work.result()
    work.cancel()
    report_disconnect()
    return None


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    """The application as raw ASGI."""
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    reply = await answer_unless_gone(body, receive)
    if reply is not None:
        await respond(send, reply)


async def asgi_watching(scope: Message, receive: Receive, send: Send) -> None:
    """As `asgi`, but watches every request for a disconnect: the cost under ASGI of dropping abandoned work."""
    body = await read_body(receive)
    work = asyncio.current_task()

    def abandon(disconnect: asyncio.Task[Message]) -> None:
        if not disconnect.cancelled() and work is not None and work.cancel():
            report_disconnect()

    disconnect = asyncio.ensure_future(receive())
    disconnect.add_done_callback(abandon)
    reply = await answer(body)
    disconnect.cancel()
    await respond(send, reply)


async def read_body(receive: Receive) -> bytes:
    """The whole body."""
    message = await receive()
    body: bytes = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    return body


async def respond(send: Send, reply: bytes) -> None:
    """Sends one JSON reply."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


async def rsgi(scope: object, protocol: Foreign) -> None:
    """The application as Granian's RSGI."""
    reply = await answer_unless_gone(await protocol(), protocol.client_disconnect)
    if reply is not None:
        protocol.response_bytes(200, [("content-type", "application/json")], reply)


def starlette() -> App:
    """The application as a Starlette route."""
    response, route = load("starlette.responses").Response, load("starlette.routing").Route

    async def embeddings(request: Foreign) -> object:
        reply = await answer_unless_gone(await request.body(), request.receive)
        return response(reply or b"", media_type="application/json")

    others = [route(f"/{n}", embeddings, methods=["POST"]) for n in ("embed", "rerank", "predict", "tokenize")]
    app: App = load("starlette.applications").Starlette(
        routes=[*others, route("/v1/embeddings", embeddings, methods=["POST"])]
    )
    return app


class Floor(asyncio.Protocol):
    """The minimum in Python: httptools on a transport, without limits and pipelining."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.task: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        if self.task is not None and self.task.cancel():
            report_disconnect()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self.body += body

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.task = asyncio.get_running_loop().create_task(self.reply(self.body))
        self.body = b""

    async def reply(self, body: bytes) -> None:
        """Writes one reply."""
        reply = await answer(body)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(reply)
        self.transport.write(head + reply)


# ------------------------------------------------------------------------------------------------- the servers
def serve_uvicorn(port: int, app: App, http: str) -> None:
    """Serves until SIGTERM."""
    options = {"http": http, "loop": "uvloop", "access_log": False, "log_level": "warning", "lifespan": "off"}
    load("uvicorn").run(app, port=port, **options)


def serve_bei(port: int) -> None:
    """Serves until SIGTERM, with the server of `bei serve`."""
    settings = Settings(model_id="none")

    async def main() -> None:
        app: Foreign = asgi
        pool = Pool(app, settings, BodyBudget(settings.max_body_bytes_in_flight), settings.max_connections)
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, told.set)
        server = await loop.create_server(lambda: Connection(pool), "127.0.0.1", port)
        await told.wait()
        server.close()
        await pool.drain(0.0, settings.drain_timeout_s)

    load("uvloop").run(main())


def serve_granian(port: int, interface: str) -> None:
    """Serves until SIGTERM: one worker process, one thread."""
    kinds = load("granian.constants")
    options = {"runtime_threads": 1, "runtime_mode": kinds.RuntimeModes.st, "loop": kinds.Loops.uvloop, "workers": 1}
    serve = load("granian.server").Server(
        f"{__name__}:{interface}", port=port, interface=kinds.Interfaces(interface), log_enabled=False, **options
    )
    serve.serve()


def serve_hypercorn(port: int) -> None:
    """Serves until SIGTERM."""
    config = load("hypercorn.config").Config()
    config.bind = [f"127.0.0.1:{port}"]
    load("uvloop").run(load("hypercorn.asyncio").serve(asgi, config))


def serve_aiohttp(port: int) -> None:
    """Serves until SIGTERM."""
    web = load("aiohttp.web")

    async def embeddings(request: Foreign) -> object:
        try:
            return web.Response(body=await answer(await request.read()), content_type="application/json")
        except asyncio.CancelledError:
            report_disconnect()
            raise

    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    options = {"access_log": None, "print": None, "handler_cancellation": True, "loop": load("uvloop").new_event_loop()}
    web.run_app(app, host="127.0.0.1", port=port, **options)


def serve_robyn(port: int) -> None:
    """Serves until SIGTERM."""
    robyn = load("robyn")

    async def embeddings(request: Foreign) -> object:
        body = request.body
        reply = await answer(body if isinstance(body, bytes) else body.encode())
        return robyn.Response(200, {"content-type": "application/json"}, reply)

    app = robyn.Robyn(__file__)
    app.post("/v1/embeddings")(embeddings)
    app.start(host="127.0.0.1", port=port)


def serve_socketify(port: int) -> None:
    """Serves until SIGTERM."""

    async def embeddings(response: Foreign, request: Foreign) -> None:
        response.on_aborted(report_disconnect)
        body = await response.get_data()
        response.write_header("content-type", "application/json").end(await answer(body.getvalue()))

    app = load("socketify").App()
    app.post("/v1/embeddings", embeddings)
    app.listen(port, lambda _: None)
    app.run()


def serve_floor(port: int) -> None:
    """Serves until SIGTERM."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port)
        await server.serve_forever()

    load("uvloop").run(main())


SERVERS: dict[str, tuple[Callable[[int], None], tuple[str, ...]]] = {
    "asyncio.Protocol (floor)": (serve_floor, ("httptools", "uvloop")),
    "bei_core.http.server": (serve_bei, ("httptools", "uvloop")),
    "uvicorn httptools": (lambda p: serve_uvicorn(p, asgi, "httptools"), ("uvicorn", "httptools", "uvloop")),
    "uvicorn httptools, watching": (
        lambda p: serve_uvicorn(p, asgi_watching, "httptools"),
        ("uvicorn", "httptools", "uvloop"),
    ),
    "uvicorn httptools + starlette": (
        lambda p: serve_uvicorn(p, starlette(), "httptools"),
        ("uvicorn", "starlette", "httptools", "uvloop"),
    ),
    "uvicorn h11": (lambda p: serve_uvicorn(p, asgi, "h11"), ("uvicorn", "h11", "uvloop")),
    "granian asgi": (lambda p: serve_granian(p, "asgi"), ("granian", "uvloop")),
    "granian rsgi": (lambda p: serve_granian(p, "rsgi"), ("granian", "uvloop")),
    "hypercorn": (serve_hypercorn, ("hypercorn", "h11", "uvloop")),
    "aiohttp": (serve_aiohttp, ("aiohttp", "uvloop")),
    "robyn": (serve_robyn, ("robyn",)),
    "socketify": (serve_socketify, ("socketify",)),
}
