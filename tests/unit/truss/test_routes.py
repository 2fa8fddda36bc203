"""The routes added to Truss's application; tests/e2e/test_truss_every_route.py tests them in Truss's server."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from bei_core.truss.routes import Added, add_routes

PREDICT = "/v1/models/{model_name}:predict"


async def trusss(request: Request) -> Response:
    return PlainTextResponse("truss's")


async def ours(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("ours", headers={"x-request-id": "1"})(scope, receive, send)


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("no such thing")


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("no", 404)(scope, receive, send)


class Deaf(Starlette):
    """An application that does not use its router's list of routes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await refusing(scope, receive, send)


def truss_like(kind: type[Starlette] = Starlette) -> Starlette:
    return kind(
        routes=[
            Route("/", trusss),
            Route(PREDICT, trusss, methods=["POST"]),
            Route("/v1/embeddings", trusss, methods=["POST"]),
        ]
    )


@pytest.fixture(scope="module", autouse=True)
def _of_earlier_tests() -> None:
    """Leaves what earlier tests made out of the collections below: each took a second to visit it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Remove applications of other tests from the process."""
    gc.collect()
    yield
    gc.collect()


async def asked(app: Starlette, method: str, path: str) -> tuple[int, str]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://truss") as client:
        reply = await client.request(method, path)
        return reply.status_code, reply.text


def test_the_added_routes_are_before_and_after_those_of_truss() -> None:
    app = truss_like()
    assert add_routes(ours)
    assert [type(route) for route in app.router.routes] == [Added, Route, Route, Route, Added]


@pytest.mark.parametrize(
    ("method", "path", "owner"),
    [
        ("GET", "/", "truss's"),
        ("POST", "/v1/models/model:predict", "truss's"),
        ("POST", "/", "ours"),  # of a path that Truss has for another method only
        ("POST", "/rerank", "ours"),
        ("POST", "/v1/embeddings", "ours"),  # before Truss's own, which stays for where ours is not
        ("GET", "/v1/models", "ours"),
        ("POST", "/predict", "ours"),
    ],
)
def test_each_path_is_answered_by_its_owner(method: str, path: str, owner: str) -> None:
    app = truss_like()
    assert add_routes(ours)
    assert asyncio.run(asked(app, method, path)) == (200, owner)


def test_a_second_load_replaces_those_of_the_first() -> None:
    app = truss_like()
    assert add_routes(ours)
    assert add_routes(ours)
    assert [type(route) for route in app.router.routes] == [Added, Route, Route, Route, Added]


def only_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = (record for record in caplog.records if record.name == "bei_core.truss.routes")
    assert record.levelno == logging.WARNING
    return record.getMessage()


def test_without_an_application_of_trusss_there_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    other = Starlette(routes=[Route("/elsewhere", trusss)])
    assert not add_routes(ours)
    assert "0 applications" in only_warning(caplog)
    assert len(other.router.routes) == 1


def test_with_two_applications_neither_is_changed(caplog: pytest.LogCaptureFixture) -> None:
    apps = [truss_like(), truss_like()]
    assert not add_routes(ours)
    assert "2 applications" in only_warning(caplog)
    assert all(len(app.router.routes) == 3 for app in apps)


def test_an_application_that_ignores_added_routes_is_left_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    app = truss_like(Deaf)
    assert not add_routes(ours)
    assert "answered with 404" in only_warning(caplog)
    assert [type(route) for route in app.router.routes] == [Route, Route, Route]


def test_a_route_that_raises_is_taken_away_again(caplog: pytest.LogCaptureFixture) -> None:
    app = truss_like()
    assert not add_routes(broken)
    assert "no such thing" in only_warning(caplog)
    assert [type(route) for route in app.router.routes] == [Route, Route, Route]


def test_a_router_of_another_shape_is_a_warning_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    app = truss_like()
    app.router.routes = tuple(app.router.routes)  # type: ignore[assignment]
    assert not add_routes(ours)
    assert only_warning(caplog)


def test_a_websocket_is_left_to_truss() -> None:
    assert Added(ours).matches({"type": "websocket", "path": "/anything"}) == (Match.NONE, {})
