"""`Layout`: how the checkpoints of a family are read. The other `*_layouts.py` have one class for families that differ
little, and the tables of what differs. Source: transformers 5.23, `models/*/modeling_*.py`, `configuration_*.py`.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import ClassVar

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import MAX_LAYERS, MAX_SIZE, Config, read_size, read_whole
from bei_core.models.rope import rope_settings
from bei_core.models.sizes import SLIDING, Sizes
from bei_core.models.tensor_names import TensorNames


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The names of a family's tensors, and how `sizes` reads its config.json. This one is of static models."""

    name: ClassVar[str] = "static"
    has_rope: ClassVar[bool] = False  # whether positions are rotary
    names: tuple[TensorNames, ...] = ()  # a checkpoint has those of one of them; see `find_names`
    reads_biases: bool = False  # whether config.json names all biases, so that the class drops others

    def sizes(self, config: Config) -> Sizes:
        """Reads config.json. Raises UnsupportedModelError for a missing size or a value that is not supported."""
        raise NotImplementedError("a static model has no transformer")

    def fit(self, sizes: Sizes, names: TensorNames, tensors: Container[str]) -> Sizes:
        """Returns the sizes of a checkpoint with these tensors, which may say more than its config.json.

        Raises UnsupportedModelError for a tensor that does not fit what config.json says.
        """
        if self.reads_biases:
            _check_biases(sizes, names, tensors)
        return sizes

    def is_causal(self, config: Config) -> bool:
        """Whether a token attends only to itself and to tokens before it."""
        return False

    def has_position_table(self, config: Config) -> bool:
        """Whether the checkpoint has an embedding for each position; else their number limits nothing."""
        return False

    def first_position(self, config: Config) -> int:
        """Returns the row of the position table for a text's first token."""
        return 0


STATIC = Layout()


def _check_biases(sizes: Sizes, names: TensorNames, tensors: Container[str]) -> None:
    """Raises UnsupportedModelError for a bias that `sizes` does not have.

    transformers drops it with a warning. If other code wrote the checkpoint, its vectors are not those of transformers.
    """
    has_bias = dict.fromkeys(names.qkv, sizes.qkv_bias) | {names.out: sizes.out_bias, names.down: sizes.mlp_out_bias}
    has_bias |= dict.fromkeys((*names.gated, names.up), sizes.mlp_bias)
    has_bias |= dict.fromkeys((names.attention_norm, names.mlp_norm), sizes.norm_bias and not sizes.is_rms)
    unknown = [name for name, is_known in has_bias.items() if not is_known]
    for number in range(sizes.num_layers):
        for name in unknown:
            tensor = f"{names.layer.format(number)}{name}.bias"
            if tensor in tensors:
                raise UnsupportedModelError(
                    f"the checkpoint has a tensor {tensor}, but by config.json this layer has no bias, so transformers "
                    "drops it; if it belongs to the model, config.json needs attention_bias, mlp_bias or norm_bias"
                )


def by_layer_types(config: Config, layer: int, otherwise: bool) -> bool:
    """Whether `layer_types` (transformers 5) says that the layer is sliding; `otherwise` if there is no such key."""
    types = config.get("layer_types")
    return types[layer] == SLIDING if types else otherwise


def check_rope(config: Config, layer_types: Sequence[str]) -> None:
    """Raises UnsupportedModelError as `rope_settings`, for the types of layers that the model has."""
    for layer_type in dict.fromkeys(layer_types):
        rope_settings(config, layer_type=layer_type)


def read_window(config: Config, name: str) -> int:
    """Returns a size of windows; one that is larger than any text may be large."""
    return min(read_whole(config, name, most=1 << 62), MAX_SIZE)


def read_num_layers(config: Config, *names: str) -> int:
    """Raises UnsupportedModelError if `layer_types` is not a list, or has fewer entries than there are layers."""
    num_layers = read_size(config, *names, most=MAX_LAYERS)
    types = config.get("layer_types") or []
    if not isinstance(types, list):
        raise UnsupportedModelError(f"config.json: layer_types {types!r} is not a list")
    if types and len(types) < num_layers:
        raise UnsupportedModelError(f"config.json: layer_types has {len(types)} entries for {num_layers} layers")
    return num_layers
