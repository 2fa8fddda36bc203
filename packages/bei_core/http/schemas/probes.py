"""Routes for load balancers, orchestrators and Prometheus; they need no API key."""

from __future__ import annotations

import time

from bei_core import metrics
from bei_core.http.json_schema import NUMBER, object_of
from bei_core.http.replies import Plain
from bei_core.http.route import Call, Route
from bei_core.serving.service import Service


async def health(call: Call) -> dict[str, float]:
    """Answers `GET /health`: 200 if every model answers."""
    await Service.check_all(call.names.services)
    return {"unix": time.time()}  # read by Infinity's client


async def live(call: Call) -> Plain:
    """Answers `GET /health/live`: always 200, because the process runs."""
    return Plain(b"")


async def scrape(call: Call) -> Plain:
    """Answers `GET /metrics` in the format of Prometheus."""
    return Plain(await call.service.metrics.scrape(), metrics.CONTENT_TYPE)


ROUTES = (
    Route(
        "GET",
        "/health",
        "200 if the model answers",
        answer=health,
        reply=object_of(unix=NUMBER),
        public=True,
        aliases=("/health/ready", "/ping"),
    ),
    Route("GET", "/health/live", "200 if the process answers", answer=live, public=True),
    Route("GET", "/metrics", "[metrics](operations.md#metrics) in Prometheus' format", answer=scrape, public=True),
)
