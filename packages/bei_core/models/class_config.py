"""config.json as the class of transformers reads it: its defaults, and the values that it does not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bei_core.errors import UnsupportedModelError
from bei_core.models.class_defaults import CLASS_DEFAULTS
from bei_core.models.configuration import Config, architecture_of, read_whole
from bei_core.models.families import FAMILIES, Family, family_name, with_class_defaults
from bei_core.models.rope import LOCAL_THETAS

# Values that are written in the code of a class, whatever config.json says.
_CONSTANTS: Mapping[str, Config] = {
    "DistilBert": {"layer_norm_eps": 1e-12},
    "Gemma": {"hidden_activation": None, "mlp_bias": False},  # see `_activation_of_gemma_1`
    "Gemma2": {"mlp_bias": False},
    "Gemma3": {"attn_logit_softcapping": None, "mlp_bias": False},
    "Mistral": {"attention_bias": False, "mlp_bias": False},
    "Qwen2": {"attention_bias": False, "mlp_bias": False},  # but queries, keys and values have a bias
    "Qwen3": {"mlp_bias": False},
    "ModernBert": {"rope_theta": None},  # the class reads global_rope_theta and local_rope_theta
}

# Other names of the same key (`attribute_map` in transformers): a value under such a name goes before the key's own.
_T5_ALIASES = {
    "head_dim": "d_kv",
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
}
_ALIASES: Mapping[str, Mapping[str, str]] = {
    "DistilBert": {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    **dict.fromkeys(("T5", "T5Encoder", "MT5", "MT5Encoder"), _T5_ALIASES),
}

# Keys that say whether the attention of a decoder is causal.
_DIRECTIONS = ("is_causal", "use_bidirectional_attention")

# The families by the model types of transformers, which are the names of classes: "xlm-roberta", "gemma3_text".
_BY_TYPE = {name.lower(): family for name, family in FAMILIES.items()}


def as_class_reads(config: Config) -> dict[str, Any]:
    """Returns config.json with the values of its class, and without thetas that it ignores.

    For an unknown class, nothing is changed.

    Raises CheckpointError without `architectures`, UnsupportedModelError as `_check_parts`, `_check_own_code`,
    `_check_direction` and `_check_model_type`, and for a `pad_token_id` that is not a whole number.
    """
    architecture = architecture_of(config)
    name = family_name(architecture)
    _check_parts(config, FAMILIES.get(name))
    _check_own_code(config, FAMILIES.get(name))
    _check_direction(config, name)
    _check_model_type(config, FAMILIES.get(name))
    ignored = () if name not in CLASS_DEFAULTS else LOCAL_THETAS - CLASS_DEFAULTS[name].keys()
    read = {key: value for key, value in config.items() if key not in ignored}
    read_whole(config, "pad_token_id")  # of every class; engines read it when they are loaded
    read |= {key: config[alias] for alias, key in _ALIASES.get(name, {}).items() if config.get(alias) is not None}
    whole = {**with_class_defaults(architecture, read), **_CONSTANTS.get(name, {})}
    return whole if name != "Gemma" else {**whole, "hidden_act": _activation_of_gemma_1(whole)}


def _activation_of_gemma_1(config: Config) -> object:
    """Returns `hidden_act`, in which "gelu" means the tanh approximation: the first published configs have it so.

    transformers 5.23 replaces it likewise and never reads `hidden_activation`. Versions up to 4.47 ignored `hidden_act`
    and used the approximation unless there is a `hidden_activation`. In 4.48, 4.57 and 5.5 "gelu" is exact.
    """
    activation = config["hidden_act"]
    return "gelu_pytorch_tanh" if activation in (None, "gelu") else activation


def base_class(model_type: object) -> str | None:
    """Returns the class that AutoModel loads for a `model_type` ("BertModel" for "bert"); None for an unknown one."""
    name = _name_of_type(model_type)
    return next((f"{known}Model" for known in FAMILIES if known.lower() == name), None)


def _name_of_type(model_type: object) -> str:
    """Returns the family's name in lower case: "xlmroberta" for "xlm-roberta"."""
    return re.sub("_text$|[-_]", "", str(model_type))


def _check_parts(config: Config, family: Family | None) -> None:
    """Raises UnsupportedModelError if the sizes of the text model are nested, as in models that also read images."""
    if family is not None and config.get("text_config"):
        raise UnsupportedModelError(
            f"config.json: text_config is not supported: {architecture_of(config)} holds a text model beside other "
            "parts; save the text model alone, with a config.json of its own"
        )


def _check_own_code(config: Config, family: Family | None) -> None:
    """Raises UnsupportedModelError for a decoder with code of its own, if config.json has none of `_DIRECTIONS`.

    GritLM, gte-Qwen1.5 and models trained from gte-Qwen2 have the class names of transformers, and code whose attention
    is not causal. Also for HF_ColBERT, whose class may be on top of any model.
    """
    own = _own_code(config)
    if own and architecture_of(config) == "HF_ColBERT":
        raise UnsupportedModelError(
            f"config.json: HF_ColBERT is supported with the layers of BERT, and auto_map names {own[0]}, code of the "
            "repository, which BEI does not run"
        )
    says_it = any(config.get(key) is not None for key in _DIRECTIONS)
    if own and _is_published_decoder(family) and not says_it:
        raise UnsupportedModelError(
            f"config.json: auto_map names {own[0]}, code of the repository, which BEI does not run and whose attention "
            "may go in both directions; add is_causal to config.json: false (such as for GritLM and gte-Qwen), or true"
        )


def _is_published_decoder(family: Family | None) -> bool:
    """Whether it is a decoder whose class is one of transformers."""
    return family is not None and family.layout.name == "decoder" and not family.has_own_code


def _own_code(config: Config) -> list[str]:
    """Returns the model classes of the repository's own code that config.json names."""
    mapped = config.get("auto_map")
    return (
        [str(name) for key, name in mapped.items() if key.startswith("AutoModel")] if isinstance(mapped, dict) else []
    )


def _check_direction(config: Config, name: str) -> None:
    """Raises UnsupportedModelError for `use_bidirectional_attention` if the class ignores it: all but Gemma 3's do."""
    if not _is_published_decoder(FAMILIES.get(name)) or name == "Gemma3" or _own_code(config):
        return
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError(
            f"config.json: use_bidirectional_attention has no effect in the class {architecture_of(config)} of "
            "transformers, whose attention is causal; set is_causal to false if it is not to be, or remove the key"
        )


def _check_model_type(config: Config, family: Family | None) -> None:
    """Raises UnsupportedModelError for a `model_type` of another family than the class, if it is one that BEI knows.

    transformers loads the class of `model_type`. Models with code of their own may have any.
    """
    model_type = config.get("model_type")
    known = _BY_TYPE.get(_name_of_type(model_type))
    if family is None or known is None or known is family or family.has_own_code or _own_code(config):
        return
    raise UnsupportedModelError(
        f"config.json: model_type is {model_type!r}, but architectures is {architecture_of(config)}, which is of "
        "another family; correct the one that is wrong"
    )
