"""Rotary position embedding (RoPE, Su et al. 2021): its tables of cosines and sines, by the settings of config.json.

The formulas are those of transformers' `modeling_rope_utils.py`, which cites the papers. Tables are computed in f64
when an engine is built or loaded, so the precision in which the engine computes does not affect the angles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import MAX_NUMBER, Config, read_number

Frequencies = npt.NDArray[np.float64]  # [S / 2], radians per position; S is the size of a head


def rope_tables(
    config: Config, head_size: int, max_len: int, *, layer_type: str = "full_attention"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns (cosines, sines), f32[max_len, S] each, for positions from 0; columns i and i + S / 2 are equal.

    Raises UnsupportedModelError for an unknown rope scaling.
    """
    frequencies, factor = frequencies_of(config, head_size, layer_type=layer_type)
    angles = np.arange(max_len)[:, None] * np.concatenate([frequencies, frequencies])
    return (factor * np.cos(angles)).astype(np.float32), (factor * np.sin(angles)).astype(np.float32)


def frequencies_of(config: Config, head_size: int, *, layer_type: str = "full_attention") -> tuple[Frequencies, float]:
    """Returns the frequencies, and the factor by which cosines and sines are multiplied.

    Raises UnsupportedModelError for an odd `head_size` or an unknown scaling.
    """
    if head_size % 2:
        raise UnsupportedModelError(f"attention heads of size {head_size}: rotary embedding needs an even size")
    kind, theta, scaling = rope_settings(config, layer_type=layer_type)
    if kind not in _SCALINGS:
        raise UnsupportedModelError(f"rope scaling {kind!r} is not supported; known are {', '.join(sorted(_SCALINGS))}")
    return _SCALINGS[kind](_unscaled(theta, head_size), theta, scaling, config)


def is_dynamic(config: Config) -> bool:
    """Whether frequencies depend on the length of a text that is longer than the model's max_position_embeddings."""
    types = ("full_attention", "sliding_attention")
    return any(_kind(_scaling(config, layer_type)) == "dynamic" for layer_type in types)


def rope_settings(config: Config, *, layer_type: str = "full_attention") -> tuple[str, float, Config]:
    """Returns (name of the scaling, theta, values of the scaling); the name is a key of `_SCALINGS` if it is known.

    Raises UnsupportedModelError for a theta or a scaling of another type than transformers writes.
    """
    scaling = _scaling(config, layer_type)
    return _kind(scaling), _theta(config, layer_type, scaling), scaling


def _kind(scaling: Config) -> str:
    """Returns the name of the scaling.

    Raises UnsupportedModelError if `rope_type` and its older name `type` differ: transformers 4.57 reads `type`, and
    transformers 5 `rope_type`.
    """
    kind, older = scaling.get("rope_type"), scaling.get("type")
    if kind and older and kind != older:
        raise UnsupportedModelError(
            f"config.json: the rope scaling has rope_type {kind!r} and type {older!r}; remove the one that is wrong"
        )
    return str(kind or older or "default")


def _scaling(config: Config, layer_type: str) -> Config:
    """Returns the scaling of one layer type, from `rope_parameters` (transformers 5) and older keys.

    As in transformers, `rope_scaling` replaces `rope_parameters`, but is added to those of each layer type. A class
    whose layer types have a theta each ignores `rope_parameters` that are not of a layer type.
    """
    parameters, scaling = _object(config, "rope_parameters"), _object(config, "rope_scaling")
    if layer_type == "sliding_attention" and config.get(_GEMMA_LOCAL) is not None:
        scaling = {}
    if layer_type in parameters or any(name in config for name in LOCAL_THETAS):
        return {**_object(parameters, layer_type), **scaling}
    return (_object(scaling, layer_type) if layer_type in scaling else scaling) or parameters


def _theta(config: Config, layer_type: str, scaling: Config) -> float:
    """Returns theta of one layer type, from its scaling, else from older keys."""
    names = (_GEMMA_LOCAL, _OTHER_LOCAL, *_THETAS) if layer_type == "sliding_attention" else _THETAS
    thetas = (scaling.get("rope_theta"), *(config.get(name) for name in names))
    theta = next((theta for theta in thetas if theta is not None), 10_000.0)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 < theta <= MAX_NUMBER:
        raise UnsupportedModelError(
            f"config.json: the base of rotary positions must be a number above 1; it is {theta!r}"
        )
    return float(theta)


def _object(values: Config, name: str) -> Config:
    """Returns an object in config.json; empty if it is missing, null or false.

    Raises UnsupportedModelError for others.
    """
    value = values.get(name) or {}
    if not isinstance(value, Mapping):
        raise UnsupportedModelError(f"config.json: {name} {value!r} is not an object")
    return value


_GEMMA_LOCAL = "rope_local_base_freq"  # Gemma 3 scales only layers with full attention, and ModernBERT all layers
_OTHER_LOCAL = "local_rope_theta"
LOCAL_THETAS = frozenset({_GEMMA_LOCAL, _OTHER_LOCAL})  # only classes whose layer types have a theta each read them
_THETAS = ("rope_theta", "global_rope_theta", "rotary_emb_base")


def _unscaled(theta: float, head_size: int) -> Frequencies:
    """Returns theta ** (-2i / S) for i from 0 to S / 2 - 1."""
    exponents: Frequencies = np.arange(0, head_size, 2) / head_size
    return 1.0 / theta**exponents


_Scaled = tuple[Frequencies, float]  # and the factor of cosines and sines
_ORIGINAL = "original_max_position_embeddings"


def _number(values: Config, name: str) -> float:
    """Returns a number of config.json or of its rope scaling. Raises UnsupportedModelError unless it is above 0."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_NUMBER:
        raise UnsupportedModelError(f"config.json: rope scaling needs a number above 0 as {name}; it is {value!r}")
    return float(value)


def _original(scaling: Config, config: Config) -> float:
    """Returns the number of positions before scaling. As in transformers 5, config.json goes before its rope scaling.

    Without this number it is max_position_embeddings.
    """
    named = next((values for values in (config, scaling) if values.get(_ORIGINAL)), None)
    return _number(config, "max_position_embeddings") if named is None else _number(named, _ORIGINAL)


def _default(plain: Frequencies, theta: float, scaling: Config, config: Config) -> _Scaled:
    return plain, 1.0


def _linear(plain: Frequencies, theta: float, scaling: Config, config: Config) -> _Scaled:
    return plain / _number(scaling, "factor"), 1.0


def _llama3(plain: Frequencies, theta: float, scaling: Config, config: Config) -> _Scaled:
    """Divides low frequencies by the factor, keeps high ones, and interpolates between the two (Llama 3.1)."""
    factor, low, high = (_number(scaling, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    rotations = _original(scaling, config) * plain / (2 * math.pi)
    share = np.clip((rotations - low) / (high - low), 0, 1)
    return (1 - share) * plain / factor + share * plain, 1.0


def _yarn(plain: Frequencies, theta: float, scaling: Config, config: Config) -> _Scaled:
    """YaRN (Peng et al. 2023)."""
    factor, half = _number(scaling, "factor"), len(plain)
    original = _original(scaling, config)

    def dimension(num_rotations: float) -> float:
        return half * math.log(original / (num_rotations * 2 * math.pi)) / math.log(theta)

    fast = _number(scaling, "beta_fast") if scaling.get("beta_fast") else 32
    slow = _number(scaling, "beta_slow") if scaling.get("beta_slow") else 1
    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_factor(factor, scaling)


def _yarn_factor(factor: float, scaling: Config) -> float:
    """Returns the factor of cosines and sines; `mscale` and `mscale_all_dim` (DeepSeek) count only together."""
    if scaling.get("attention_factor") is not None:
        return read_number(scaling, "attention_factor", 1.0)

    def grown(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, of_all = read_number(scaling, "mscale", 0), read_number(scaling, "mscale_all_dim", 0)
    return grown(mscale) / grown(of_all) if mscale and of_all else grown(1.0)


def _ntk(plain: Frequencies, theta: float, scaling: Config, config: Config) -> _Scaled:
    """NTK scaling of GTE (Alibaba-NLP/new-impl, `NTKScalingRotaryEmbedding`), without its option `mixed_b`."""
    if scaling.get("mixed_b") is not None:
        raise UnsupportedModelError("rope scaling ntk with mixed_b is not supported")
    factor, half = _number(scaling, "factor"), len(plain)
    return _unscaled(theta * factor, 2 * half) / factor ** (1 / half), 1.0


_SCALINGS: dict[str, Callable[[Frequencies, float, Config, Config], _Scaled]] = {
    "default": _default,
    "dynamic": _default,  # scales only sequences longer than the model's max_position_embeddings
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "ntk": _ntk,
}
