"""What a model's files say of its transformer: config.json, and how many tokens a text may have."""

from __future__ import annotations

from typing import Any

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import ADAPTER
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.class_config import as_class_reads, base_class
from bei_core.models.configuration import MAX_NUMBER, Config, architecture_of
from bei_core.models.families import FAMILIES, family_name
from bei_core.models.rope import is_dynamic
from bei_core.models.sentence.modules import Task
from bei_core.models.sentence.settings import TransformerSettings, read_settings
from bei_core.models.sentence.static import STATIC_TABLES, static_config, static_length


def is_static_model(config: Config) -> bool:
    """Returns whether the model is a table of token vectors, without a transformer."""
    return architecture_of(config) in STATIC_TABLES


def read_config(
    checkpoint: Checkpoint, transformer: TransformerSettings, task: Task | None
) -> tuple[str, dict[str, Any]]:
    """Returns the architecture and config.json, in which the transformer's settings replace values.

    `task` is that of modules.json; None without this file. A static model needs no config.json: what it would say is
    read from the tensors. A file without `architectures` gets the base class of its `model_type`, as in
    sentence-transformers, if `task` is to give vectors. Raises CheckpointError if the file, its `architectures` or the
    table of a static model is missing, UnsupportedModelError for an adapter or code of the repository.
    """
    if task == "static":
        config = static_config(checkpoint)
    else:
        _check_adapter(checkpoint)
        file = checkpoint.read_json(checkpoint.in_first_module("config.json"))
        base = base_class(file.get("model_type")) if task == "feature-extraction" else None
        named = {"architectures": [base]} if base and not file.get("architectures") else {}
        config = as_class_reads({**file, **named, **transformer.config_args, **transformer.config_kwargs})
    return architecture_of(config), config


def _check_adapter(checkpoint: Checkpoint) -> None:
    """Raises UnsupportedModelError for an adapter: transformers adds it to the model, also beside whole weights."""
    name = checkpoint.in_first_module(ADAPTER)
    if (checkpoint.folder / name).is_file():
        raise UnsupportedModelError(
            f"{name}: adapters (PEFT) are not supported; merge this one into its model with peft's merge_and_unload()"
        )


class _TokenizerConfig(msgspec.Struct):
    """The limits in tokenizer_config.json."""

    model_max_length: float | None = None
    max_len: float | None = None  # its name in transformers 2


_NO_LIMIT = 1e20  # as in transformers (`LARGE_INTEGER`)


def read_max_seq_len(checkpoint: Checkpoint, config: Config, transformer: TransformerSettings) -> int:
    """Returns the most tokens of one input: sentence-transformers' limit, else the tokenizer's.

    It is at most the number of positions, as far as `_is_within_positions`. Raises CheckpointError if no file has a
    limit, or if it is less than 1.
    """
    if is_static_model(config):
        return static_length(checkpoint)
    name = checkpoint.in_first_module("tokenizer_config.json")
    tokenizer = read_settings(checkpoint, name, _TokenizerConfig, required=False)
    asked = transformer.max_length or tokenizer.model_max_length or tokenizer.max_len
    limits = [int(limit) for limit in (asked, num_positions(config)) if limit and limit < _NO_LIMIT]
    if len(limits) > 1 and not _is_within_positions(config, is_asked=transformer.max_length is not None):
        limits = limits[:1]
    if not limits:
        raise CheckpointError("neither sentence_bert_config.json, tokenizer_config.json nor config.json has a length")
    if min(limits) < 1:
        raise CheckpointError(f"a text may have {min(limits)} tokens, by {name} or config.json; expected at least 1")
    return min(limits)


def _is_within_positions(config: Config, *, is_asked: bool) -> bool:
    """Whether a text is no longer than the positions that config.json names.

    sentence-transformers takes a length that it is asked for (`is_asked`) as it is; beyond a table of positions it then
    fails. It never limits T5, whose class knows no positions.
    """
    family = FAMILIES.get(family_name(architecture_of(config)))
    layout = family.layout if family else None
    if layout is None or layout.has_position_table(config) or (layout.has_rope and is_dynamic(config)):
        return True
    return layout.name != "t5" and not is_asked


def num_positions(config: Config) -> int | None:
    """Returns the number of tokens of a text that have a position; None for a model without a limit (XLNet has -1).

    Raises CheckpointError if config.json has something else than a number.
    """
    count = config.get("max_position_embeddings") or config.get("n_positions")
    if count is not None and (not isinstance(count, int | float) or not abs(count) <= MAX_NUMBER):
        raise CheckpointError(f"config.json: max_position_embeddings {count!r} is not a number")
    if count is None or count < 0:
        return None
    family = FAMILIES.get(family_name(architecture_of(config)))
    return int(count) - (family.layout.first_position(config) if family else 0)
