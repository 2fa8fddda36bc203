"""Reads the tokenizer files of a model folder, and finds the class of transformers that they are for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import AddedToken

from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.text.published.classes import CLASSES, TokenizerClass, class_of_type

Json: TypeAlias = Any  # a value in a JSON file
Config: TypeAlias = Mapping[str, Any]

TOKENIZER = "tokenizer.json"

# The attributes of special tokens, in the order in which transformers adds them.
ATTRIBUTES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADDITIONAL = "additional_special_tokens"

_SAVE = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"

# Alibaba's class for gte-Qwen2 and models trained from it: Qwen2's class, and it honours `add_eos_token`.
_QWEN_WITH_EOS = "tokenization_qwen.Qwen2Tokenizer"


@dataclass(frozen=True, slots=True)
class Published:
    """What the files of a folder say of its tokenizer."""

    folder: Path
    kind: TokenizerClass
    config: Config  # tokenizer_config.json, with special_tokens_map.json if transformers reads it
    added: Mapping[int, AddedToken]  # tokens that the files add to the vocabulary
    has_file: bool  # whether there is a tokenizer.json
    by_version_5: bool  # whether transformers 5 wrote the files
    adds_eos: bool  # whether the class of gte-Qwen2 puts an end-of-text token after a text


def read_published(folder: Path) -> Published:
    """Reads the tokenizer files of a folder.

    Raises CheckpointError for a malformed file, UnsupportedModelError for a class that is not supported.
    """
    try:
        return _published(folder)
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise CheckpointError(f"{folder}: the tokenizer's JSON files are malformed: {reason}") from fault


def _published(folder: Path) -> Published:
    config = _read(folder, "tokenizer_config.json")
    has_file = (folder / TOKENIZER).is_file()
    model = _read(folder, "config.json")
    adds_eos = _is_qwen_with_eos(config, model)
    kind = CLASSES["Qwen2"] if adds_eos else _class_of(config, model, has_file=has_file)
    if adds_eos and "add_eos_token" not in config:
        raise UnsupportedModelError(
            f"tokenizer_config.json names the class {_QWEN_WITH_EOS} but has no add_eos_token; set it to true or false"
        )
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        config = {**config, **_special_tokens_map(folder, config)}
        added = _older_added_tokens(folder, config)
    else:
        added = {int(index): _added_token(token) for index, token in decoder.items()}
    named = {token.content: token for token in added.values()}
    config = {name: _with_flags(value, named) if name in ATTRIBUTES else value for name, value in config.items()}
    return Published(
        folder=folder,
        kind=kind,
        config=config,
        added=added,
        has_file=has_file,
        by_version_5="backend" in config or config.get("tokenizer_class") == "TokenizersBackend",
        adds_eos=adds_eos and bool(config["add_eos_token"]),
    )


def as_token(value: Json) -> str | AddedToken:
    """Returns a token of a JSON file, which has the text alone, or the text with flags."""
    return value if isinstance(value, str | AddedToken) else _added_token(value)


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in a file; {} if there is no file. Raises CheckpointError if it has something else."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{path} is not JSON: {fault}") from fault
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return found


def _class_of(config: Config, model: Config, *, has_file: bool) -> TokenizerClass:
    """Returns the class that reads the folder. Raises UnsupportedModelError for a class that is not supported."""
    for name in _custom(config, model):
        raise UnsupportedModelError(
            f"the tokenizer's class {name} is code in the model's repository, which BEI does not run; if you trust it, "
            "write a tokenizer.json with "
            "AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True).save_pretrained(FOLDER) "
            "and remove auto_map from tokenizer_config.json"
        )
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    if named is not None:
        return _named(str(named))
    family = re.match(r"(\w+?)(?:Text)?(?:Model|For\w+)$", str((model.get("architectures") or [""])[0]))
    types = (str(model.get("model_type") or ""), family[1] if family else "")
    known = next((kind for name in types if (kind := class_of_type(name)) is not None), None)
    if known is None and not has_file:
        raise UnsupportedModelError(
            f"there is no {TOKENIZER}, and neither tokenizer_config.json nor config.json says which class of "
            f"transformers reads the vocabulary; write {TOKENIZER} with transformers: {_SAVE}"
        )
    return known or CLASSES["PreTrained"]


def _named(name: str) -> TokenizerClass:
    """Returns the class with a name such as "BertTokenizerFast". Raises UnsupportedModelError if it is unknown."""
    known = CLASSES.get(name) or CLASSES.get(name.removesuffix("Fast").removesuffix("Tokenizer"))
    if known is None:
        raise UnsupportedModelError(
            f"the tokenizer class {name} is not supported; known are "
            f"{', '.join(f'{each}Tokenizer' for each in CLASSES if each not in {'PreTrained', 'TokenizersBackend'})} "
            "and PreTrainedTokenizerFast with a tokenizer.json"
        )
    return known


def _custom(config: Config, model: Config) -> list[str]:
    """Returns the names of the tokenizer classes whose code is in the folder (`auto_map`)."""
    found = config.get("auto_map")
    if isinstance(found, dict):
        found = found.get("AutoTokenizer")
    if found is None and config.get("tokenizer_class") is None:
        mapped = model.get("auto_map")
        found = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else None
    names = [found] if isinstance(found, str) else list(found or ())
    return [str(name) for name in reversed(names) if name]


def _is_qwen_with_eos(config: Config, model: Config) -> bool:
    """Whether the tokenizer has the class of gte-Qwen2; without `auto_map`, the model's class decides it."""
    names = _custom(config, model)
    if names:
        return all(_QWEN_WITH_EOS in name for name in names)
    mapped = model.get("auto_map")
    own = str(mapped.get("AutoModel", "")) if isinstance(mapped, dict) else ""
    return "modeling_qwen.Qwen2" in own and str(config.get("tokenizer_class")).startswith("Qwen2Tokenizer")


def _special_tokens_map(folder: Path, config: Config) -> dict[str, Any]:
    """Returns the values of special_tokens_map.json that replace those of tokenizer_config.json.

    transformers reads this file only if tokenizer_config.json has no added_tokens_decoder.
    """
    found: dict[str, Any] = {}
    for name, value in _read(folder, "special_tokens_map.json").items():
        if name == ADDITIONAL and isinstance(value, list):
            tokens = [as_token(token) for token in config.get(ADDITIONAL) or ()]
            found[name] = tokens + [token for token in map(_special, value) if token not in tokens]
        else:
            found[name] = _special(value) if isinstance(value, dict) else value
    return found


def _older_added_tokens(folder: Path, config: Config) -> dict[int, AddedToken]:
    """Returns the tokens of added_tokens.json and tokenizer.json by id, for folders from before transformers 4.34."""
    specials = {str(as_token(config[name])) for name in ATTRIBUTES if config.get(name) is not None}
    specials |= {str(as_token(token)) for token in config.get(ADDITIONAL) or ()}
    found = {}
    for token, index in _read(folder, "added_tokens.json").items():
        special = token in specials
        found[int(index)] = AddedToken(token, normalized=not special, special=special)
    for entry in _read(folder, TOKENIZER).get("added_tokens") or ():
        found[int(entry["id"])] = _added_token({name: value for name, value in entry.items() if name != "id"})
    return found


def _special(value: Json) -> str | AddedToken:
    """Returns a token of special_tokens_map.json, which is special."""
    return value if isinstance(value, str) else _added_token({**value, "special": True})


def _added_token(value: Json) -> AddedToken:
    """Returns a token with its flags. Raises CheckpointError if `value` is not the JSON object of a token."""
    known = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return AddedToken(**{name: flag for name, flag in value.items() if name in known})
    raise CheckpointError(f"a token of the tokenizer's files is {value!r}: expected its content and its flags")


def _with_flags(value: Json, named: Mapping[str, AddedToken]) -> str | AddedToken | None:
    """Returns a special token with the flags that it has among the added tokens `named`, by their text."""
    if value is None:
        return None
    token = as_token(value)
    return named.get(str(token), token)
