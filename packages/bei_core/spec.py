"""A model folder read into what an engine and a tokenizer need to know of it.

The files are transformers' `config.json` and, where the folder is a sentence-transformers model, `modules.json` with a
folder a module. Read against sentence-transformers 6.2 (`sentence_transformer/modules/pooling.py`,
`base/modules/dense.py`, `base/modules/transformer.py`), which also reads what its older releases wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, ConfigError, UnsupportedModel
from bei_core.tasks import Scoring

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

# The booleans that sentence-transformers < 5.4 writes, in the order in which it concatenates several.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# What `Settings.pooling` and TEI's `--pooling` call them.
_POOLING_ALIASES = {
    "last-token": "lasttoken",
    "last_token": "lasttoken",
    "weighted_mean": "weightedmean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
}

_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}


class Pooling(msgspec.Struct, frozen=True, tag="pooling"):
    """Token vectors to one vector a text; several modes are concatenated."""

    modes: tuple[str, ...]


class Dense(msgspec.Struct, frozen=True, tag="dense"):
    """A linear layer and an activation; its weights are `<folder>/model.safetensors`."""

    folder: str
    bias: bool
    activation: str
    residual: bool = False


class Normalize(msgspec.Struct, frozen=True, tag="normalize"):
    """L2 normalisation between two other modules."""


class Classifier(msgspec.Struct, frozen=True, tag="classifier"):
    """The first token's vector to a score for each label, in the order of the model's outputs."""

    labels: tuple[str, ...]
    scoring: Scoring


Module: TypeAlias = Pooling | Dense | Normalize | Classifier


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a model but its weights and its vocabulary."""

    architecture: str  # config.json's `architectures[0]`
    config: dict[str, Any]  # config.json
    modules: tuple[Module, ...]  # after the transformer, in order, less a last Normalize
    normalize: bool  # whether the model's own pipeline ends in Normalize
    max_seq_len: int  # tokens of one input, special tokens included
    do_lower_case: bool = False  # sentence_bert_config.json: lower the text before it is tokenized
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None

    @property
    def classifier(self) -> Classifier | None:
        """What the scores mean, where the model gives scores rather than vectors."""
        return next((module for module in self.modules if isinstance(module, Classifier)), None)

    def pools_by(self, name: str) -> bool:
        """Whether the pooling is that of a name, in any of its spellings, and no other."""
        return all(m.modes == (_pooling_mode(name),) for m in self.modules if isinstance(m, Pooling))

    @property
    def hidden_size(self) -> int:
        """Width of a token vector."""
        return int(self.config.get("hidden_size") or self.config["dim"])

    @property
    def vocab_size(self) -> int:
        """Token ids below this are known to the model."""
        return int(self.config["vocab_size"])


def read_spec(checkpoint: Checkpoint, *, pooling: str | None = None) -> ModelSpec:
    """The spec of a model folder; `pooling` replaces what the folder says.

    Raises CheckpointError naming a file that is missing or malformed, UnsupportedModel for modules BEI does not know.
    """
    config = checkpoint.read_json("config.json")
    architecture = _architecture(config)
    is_classifier = architecture.endswith("ForSequenceClassification")
    modules = [_classifier(config)] if is_classifier else list(_modules(checkpoint))
    if pooling is not None:
        chosen = Pooling(modes=(_pooling_mode(pooling),))
        modules = [chosen if isinstance(module, Pooling) else module for module in modules]
    normalize = isinstance(modules[-1], Normalize)
    sentence = _sentence_config(checkpoint)
    prompts = checkpoint.read_json("config_sentence_transformers.json", required=False) or {}
    return ModelSpec(
        architecture=architecture,
        config=dict(config),
        modules=tuple(modules[:-1] if normalize else modules),
        normalize=normalize,
        max_seq_len=_max_seq_len(checkpoint, config, sentence),
        do_lower_case=bool(sentence.get("do_lower_case", False)),
        prompts={name: text for name, text in (prompts.get("prompts") or {}).items() if text is not None},
        default_prompt_name=prompts.get("default_prompt_name"),
    )


def _architecture(config: Mapping[str, Any]) -> str:
    """The class that wrote the weights. Raises CheckpointError where config.json does not say."""
    names = config.get("architectures") or []
    if not names:
        raise CheckpointError(
            'config.json has no `architectures`; add the class that the weights belong to, such as ["BertModel"]'
        )
    return str(names[0])


def _classifier(config: Mapping[str, Any]) -> Classifier:
    """Labels and scoring as transformers' pipelines have them (`pipelines/text_classification.py`)."""
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    count = len(names) or int(config.get("num_labels") or 2)
    labels = tuple(names.get(index, f"LABEL_{index}") for index in range(count))
    by_problem: dict[Any, Scoring] = {
        "regression": "none",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    problem = config.get("problem_type")
    scoring = "sigmoid" if count == 1 and problem != "regression" else by_problem.get(problem, "softmax")
    return Classifier(labels, scoring)


def _modules(checkpoint: Checkpoint) -> Sequence[Module]:
    """The modules after the transformer; mean pooling where the folder is not a sentence-transformers model."""
    entries = checkpoint.read_json("modules.json", required=False)
    if entries is None:
        return [Pooling(modes=("mean",))]  # as SentenceTransformer(folder) does
    modules = [_module(checkpoint, entry) for entry in sorted(entries, key=lambda entry: entry["idx"])[1:]]
    if not modules or not isinstance(modules[0], Pooling):
        raise UnsupportedModel("modules.json: the module after the transformer must be Pooling")
    if any(isinstance(module, Pooling) for module in modules[1:]):
        raise UnsupportedModel("modules.json names more than one Pooling module")
    return modules


def _module(checkpoint: Checkpoint, entry: Mapping[str, Any]) -> Module:
    """One entry of modules.json. Raises UnsupportedModel for a kind that BEI does not run."""
    kind, folder = str(entry["type"]).rsplit(".", 1)[-1], str(entry.get("path", ""))
    if kind == "Normalize":
        return Normalize()
    if kind == "Pooling":
        return _pooling(checkpoint.read_json(f"{folder}/config.json"), folder)
    if kind == "Dense":
        return _dense(checkpoint.read_json(f"{folder}/config.json"), folder)
    raise UnsupportedModel(f"modules.json: {entry['type']} is not one of Transformer, Pooling, Dense, Normalize")


def _pooling(config: Mapping[str, Any], folder: str) -> Pooling:
    """The pooling of either form of `1_Pooling/config.json`."""
    if config.get("include_prompt", True) is False:
        raise UnsupportedModel(f"{folder}/config.json: include_prompt=false is not supported")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    return Pooling(modes=tuple(_pooling_mode(mode) for mode in ([modes] if isinstance(modes, str) else modes)))


def _pooling_mode(name: str) -> str:
    """The canonical name of a pooling mode. Raises ConfigError listing the known ones."""
    mode = _POOLING_ALIASES.get(name, name)
    if mode not in POOLING_MODES:
        raise ConfigError(f"unknown pooling {name!r}; known are {', '.join(POOLING_MODES)}")
    return mode


def _dense(config: Mapping[str, Any], folder: str) -> Dense:
    """A Dense module. Raises UnsupportedModel for inputs and activations outside the table."""
    if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise UnsupportedModel(f"{folder}/config.json: Dense on {config['module_input_name']} is not supported")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:
        raise UnsupportedModel(
            f"{folder}/config.json: activation {activation!r}; known are {', '.join(sorted(_ACTIVATIONS))}"
        )
    return Dense(
        folder=folder,
        bias=bool(config.get("bias", True)),
        activation=_ACTIVATIONS[activation],
        residual=bool(config.get("use_residual", False)),
    )


def _sentence_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """`sentence_bert_config.json`, under any of the names sentence-transformers has given it."""
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
        config = checkpoint.read_json(f"sentence_{kind}_config.json", required=False)
        if config is not None:
            return dict(config)
    return {}


def _max_seq_len(checkpoint: Checkpoint, config: Mapping[str, Any], sentence: Mapping[str, Any]) -> int:
    """Tokens of one input: what sentence-transformers was told, else the tokenizer; never past the position table."""
    tokenizer = checkpoint.read_json("tokenizer_config.json", required=False) or {}
    asked = sentence.get("max_seq_length") or tokenizer.get("model_max_length")
    table = config.get("max_position_embeddings")
    if table is not None and config.get("model_type") in {"roberta", "xlm-roberta", "camembert", "mpnet"}:
        table -= first_position(config)
    limits = [int(limit) for limit in (asked, table) if limit]
    if not limits:
        raise CheckpointError("neither sentence_bert_config.json, tokenizer_config.json nor config.json has a length")
    return min(limits)


def first_position(config: Mapping[str, Any]) -> int:
    """Row of the position table for a text's first token, in the kinds that count positions from the padding id."""
    pad = config.get("pad_token_id")
    if pad is None or config.get("model_type") == "mpnet":  # whose padding id is 1 whatever config.json says
        return 2
    return int(pad) + 1


def save_spec(spec: ModelSpec, path: Path) -> None:
    """Writes the spec as JSON that `load_spec` reads back equal."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2))


def load_spec(path: Path) -> ModelSpec:
    """The spec that `save_spec` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=ModelSpec)
