from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorrt_llm.calls import record

MODEL_CLASS_MAPPING: dict[str, type] = {}


def register_auto_model(name: str) -> Callable[[Any], Any]:
    record("register_auto_model", (name,), {})

    def decorator(cls: Any) -> Any:
        MODEL_CLASS_MAPPING[name] = cls
        return cls

    return decorator
