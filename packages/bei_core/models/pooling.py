"""`PoolingMode`, the table of the ways in which token vectors become one vector.

To add a mode, add a row to `PoolingMode` and a function to the table `POOLINGS` of each engine, which is in
`engines/openvino/pooling.py` and `engines/torch/models/pooling.py` (TensorRT-LLM uses the one of torch). The setting
`pooling`, its help, the reply of `/info` and the reading of sentence-transformers' files are made from the row.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

from bei_core.errors import ConfigError


class PoolingMode(str, Enum):
    """How the vectors of a text's tokens become one vector.

    The value is sentence-transformers' name of the mode, also in the file spec.json of an engine. A model with several
    modes concatenates their vectors in the order of these rows, as sentence-transformers does.
    """

    flag: str  # the key of 1_Pooling/config.json with which sentence-transformers < 5.4 switches the mode on
    setting: str  # the value of the setting `pooling`
    tei: str  # the name in the reply of `/info`
    by_position: bool  # the result depends on each token's place in the text, so a prompt's tokens cannot be left out

    CLS = "cls", "pooling_mode_cls_token", "cls", "cls", True
    MAX = "max", "pooling_mode_max_tokens", "max", "max", False
    MEAN = "mean", "pooling_mode_mean_tokens", "mean", "mean", False
    MEAN_SQRT_LEN = (
        "mean_sqrt_len_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "mean_sqrt_len",
        "mean_sqrt_len_tokens",
        False,
    )
    WEIGHTED_MEAN = "weightedmean", "pooling_mode_weightedmean_tokens", "weighted_mean", "weightedmean", True
    LAST_TOKEN = "lasttoken", "pooling_mode_lasttoken", "last_token", "last_token", False

    def __new__(cls, value: str, flag: str, setting: str, tei: str, by_position: bool) -> PoolingMode:
        """Returns a mode with its attributes."""
        mode = str.__new__(cls, value)
        mode._value_, mode.flag, mode.setting, mode.tei, mode.by_position = value, flag, setting, tei, by_position
        return mode

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def named(cls, name: str) -> PoolingMode:
        """Returns the mode with this value or setting; "-" counts as "_". Raises ConfigError listing the modes."""
        for mode in cls:
            if name.replace("-", "_") in {mode.value, mode.setting}:
                return mode
        raise ConfigError(f"unknown pooling {name!r}; known are {', '.join(cls)}")


# A choice of the setting `pooling` that is not a mode: the sparse vector that a masked language model's head gives.
SPLADE = "splade"

if TYPE_CHECKING:
    PoolingSetting: TypeAlias = str
else:
    PoolingSetting = Literal[(*(mode.setting for mode in PoolingMode), SPLADE)]
