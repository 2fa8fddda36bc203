"""Pooling modes: THE table of them. `models` says what is published; each engine has one function a mode.

To add a mode, add a row to `PoolingMode` and one function to each engine's table `POOLINGS`, which is in
`engines/openvino/pooling.py` and `engines/torch/models/pooling.py` (TensorRT-LLM uses torch's). `--pooling`, its help,
TEI's names and the reading of sentence-transformers' files follow from the row.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

from bei_core.errors import ConfigError


class PoolingMode(str, Enum):
    """A way from token vectors to one vector. The value is sentence-transformers' name, which spec.json has too.

    The rows are in the order in which sentence-transformers concatenates several modes.
    """

    flag: str  # the key of 1_Pooling/config.json that sentence-transformers < 5.4 writes
    setting: str  # its name in the setting `pooling`, as TEI's, whose last-token may also have an underscore
    by_position: bool  # whether a token's position counts, so that no token can be left out

    CLS = "cls", "pooling_mode_cls_token", "cls", True
    MAX = "max", "pooling_mode_max_tokens", "max"
    MEAN = "mean", "pooling_mode_mean_tokens", "mean"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len"
    WEIGHTED_MEAN = "weightedmean", "pooling_mode_weightedmean_tokens", "weighted_mean", True
    LAST_TOKEN = "lasttoken", "pooling_mode_lasttoken", "last_token"

    def __new__(cls, value: str, flag: str, setting: str, by_position: bool = False) -> PoolingMode:
        """A mode with its attributes."""
        mode = str.__new__(cls, value)
        mode._value_, mode.flag, mode.setting, mode.by_position = value, flag, setting, by_position
        return mode

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def named(cls, name: str) -> PoolingMode:
        """The mode of one of its names. Raises ConfigError listing the known ones."""
        for mode in cls:
            if name.replace("-", "_") in {mode.value, mode.setting}:
                return mode
        raise ConfigError(f"unknown pooling {name!r}; known are {', '.join(cls)}")


# Not a mode: the head of a masked language model, whose rows are weights of terms.
SPLADE = "splade"

if TYPE_CHECKING:
    PoolingSetting: TypeAlias = str
else:
    PoolingSetting = Literal[(*(mode.setting for mode in PoolingMode), SPLADE)]
