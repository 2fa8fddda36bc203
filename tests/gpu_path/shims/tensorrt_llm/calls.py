"""Records all calls, for the test that binds them to the documented signatures."""

from __future__ import annotations

from typing import Any

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []


def record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    CALLS.append((name, args, kwargs))
