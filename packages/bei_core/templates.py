"""Placeholder: being written."""

from __future__ import annotations

import msgspec


class RerankTemplate(msgspec.Struct, frozen=True):
    """Makes one text of a query and a document."""

    name: str
    template: str
    instruction: str | None = None
    tokens: tuple[str, str] | None = None


def find_template(source: str, architecture: str) -> RerankTemplate | None:
    """None yet."""
    return None
