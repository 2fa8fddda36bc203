"""Google Vertex AI's API: `/vertex`."""

from __future__ import annotations

from typing import Any

from bei_core.http.schemas.common import Named


class VertexRequest(Named, kw_only=True):
    """`POST /vertex`: bodies of other routes, of any kind."""

    instances: list[Any]
