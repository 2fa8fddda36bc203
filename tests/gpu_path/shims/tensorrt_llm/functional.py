from __future__ import annotations

from enum import IntEnum


class RotaryScalingType(IntEnum):
    none = 0
    llama3 = 4
