"""The pages of the model families, found by their names: `models/PAGE.py` has a class `Transformer`."""

from __future__ import annotations

from importlib import import_module

from bei_core.engines.openvino.models.blocks import Transformer
from bei_core.engines.openvino.models.weights import Weights
from bei_core.models.configuration import Config
from bei_core.models.families import Family


def make_transformer(family: Family, config: Config, weights: Weights, max_len: int) -> Transformer:
    """The layers of a checkpoint of this family; `max_len` is the length of the longest sequence.

    Raises UnsupportedModelError for a value in config.json that is not supported.
    """
    page = import_module(f"{__package__}.{family.page}")
    made: Transformer = page.Transformer(family, config, weights, max_len)
    return made
