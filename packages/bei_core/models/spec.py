"""`ModelSpec`: what an engine and a tokenizer need to know of a model, read from its folder.

The files are transformers' `config.json` and, of a sentence-transformers model, `modules.json` with one folder per
module. The rules are those of sentence-transformers 6.2 (`sentence_transformer/modules/pooling.py`,
`base/modules/{dense,transformer}.py`, `sparse_encoder/modules/splade_pooling.py`,
`cross_encoder/modules/logit_score.py`), which also reads the files of its older releases, of ColBERT and of PyLate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, ConfigError, UnsupportedModelError
from bei_core.models.kind import Kind
from bei_core.tasks import Scoring
from bei_core.text.published import canonical_tokenizer
from bei_core.text.templates import EXAMPLE, RerankTemplate, find_template

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

# The flags that sentence-transformers < 5.4 writes, in the order in which it concatenates several modes.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}

# Other names, used by `Settings.pooling` and by TEI's `--pooling`.
_POOLING_ALIASES = {
    "last-token": "lasttoken",
    "last_token": "lasttoken",
    "weighted_mean": "weightedmean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
}


class Pooling(msgspec.Struct, frozen=True, tag="pooling"):
    """Token vectors to one vector per text; the vectors of several modes are concatenated."""

    modes: tuple[str, ...]
    include_prompt: bool = True  # False: pooling leaves out the tokens of a prompt


class Dense(msgspec.Struct, frozen=True, tag="dense"):
    """A linear layer and an activation; its weights are in `<folder>/model.safetensors`."""

    folder: str  # "": the model's own weights
    bias: bool
    activation: str
    residual: bool = False
    tensor: str = "linear"
    per_token: bool = False  # applied to every token, before pooling


class Normalize(msgspec.Struct, frozen=True, tag="normalize"):
    """L2 normalisation between two other modules."""


class Classifier(msgspec.Struct, frozen=True, tag="classifier"):
    """A logit for each label, in the order of the model's outputs, from the architecture's head."""

    labels: tuple[str, ...]
    scoring: Scoring
    per_token: bool = False
    answers: tuple[int | None, int] | None = (
        None  # token ids of "no" and "yes" of a causal language model; the logit is yes - no
    )


class Splade(msgspec.Struct, frozen=True, tag="splade"):
    """A weight for each term of the vocabulary: the maximum over tokens of log(1 + relu(logit)) (SPLADE, 2021)."""


Module: TypeAlias = Pooling | Dense | Normalize | Classifier | Splade


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a model except its weights and its vocabulary."""

    architecture: str  # config.json's `architectures[0]`
    config: dict[str, Any]  # config.json
    modules: tuple[Module, ...]  # after the transformer, in order, without a last Normalize
    normalize: bool  # whether the last module is Normalize
    max_seq_len: int  # tokens of one input, special tokens included
    do_lower_case: bool = False  # sentence_bert_config.json: lower-case the text before tokenization
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    template: RerankTemplate | None = None  # makes one text of a reranker's query and document

    @property
    def classifier(self) -> Classifier | None:
        """The classifier; None if the model gives vectors."""
        return next((module for module in self.modules if isinstance(module, Classifier)), None)

    @property
    def kind(self) -> Kind:
        """What the model does."""
        classifier = self.classifier
        if classifier is not None and classifier.per_token:
            return Kind.TOKEN_CLASSIFIER
        if classifier is not None:
            return Kind.RERANKER if len(classifier.labels) == 1 else Kind.CLASSIFIER
        if any(isinstance(module, Splade) for module in self.modules):
            return Kind.SPARSE
        pools = any(isinstance(module, Pooling) for module in self.modules)
        return Kind.EMBEDDING if pools else Kind.LATE_INTERACTION

    def pools_by(self, name: str) -> bool:
        """Whether the model pools by the mode of this name, which may be an alias, and by no other."""
        if name == "splade":
            return self.kind is Kind.SPARSE
        return all(m.modes == (_pooling_mode(name),) for m in self.modules if isinstance(m, Pooling))

    def answers_as(self, template: RerankTemplate) -> bool:
        """Whether a template asks for the answers (the tokens for "no" and "yes") that the scores were built for."""
        if self.classifier is None:
            return False
        asked = None if self.template is None or self.classifier.answers is None else self.template.tokens
        return asked is None or template.tokens in {None, asked}

    @property
    def pools_prompt(self) -> bool:
        """Whether pooling includes the tokens of a prompt."""
        return all(module.include_prompt for module in self.modules if isinstance(module, Pooling))

    @property
    def vocab_size(self) -> int:
        """The number of token ids that the model knows."""
        return int(self.config["vocab_size"])


def read_spec(
    checkpoint: Checkpoint, *, pooling: str | None = None, template: RerankTemplate | None = None
) -> ModelSpec:
    """The spec of a model folder; `pooling` and `template` override the folder and the known template.

    Raises CheckpointError naming a file that is missing or malformed, UnsupportedModelError for a module that BEI does
    not know, ConfigError for a pooling or a template that the model cannot have.
    """
    config = checkpoint.read_json("config.json")
    architecture = _architecture(config)
    own, asked = find_template(checkpoint.source), template is not None
    template = _answering(template, own) if template else own
    modules = _head(checkpoint, config, architecture, template) or _modules(checkpoint, config, architecture)
    if asked and not any(isinstance(module, Classifier) for module in modules):
        raise _no_scores(architecture)
    if pooling is not None:
        modules = _pooled_by(pooling, modules, architecture)
    normalize = bool(modules) and isinstance(modules[-1], Normalize)
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
        template=template,
    )


def _answering(template: RerankTemplate, own: RerankTemplate | None) -> RerankTemplate:
    """The template; if it has no answers, with those of the model's own template."""
    if template.tokens is not None or own is None:
        return template
    return msgspec.structs.replace(template, tokens=own.tokens)


def _no_scores(architecture: str) -> ConfigError:
    """The error for a template with a model that gives vectors."""
    if architecture.endswith("ForCausalLM"):
        return ConfigError(
            f"rerank_template does not say with which tokens this {architecture} answers no and yes; give it as JSON: "
            f"{EXAMPLE}"
        )
    return ConfigError(f"rerank_template is for rerankers, and {architecture} gives vectors")


def _head(
    checkpoint: Checkpoint, config: Mapping[str, Any], architecture: str, template: RerankTemplate | None
) -> list[Module]:
    """The head that the architecture itself has; empty for a class that is used for its vectors."""
    if architecture.endswith("ForSequenceClassification"):
        return [_classifier(config)]
    if architecture.endswith("ForTokenClassification"):
        return [msgspec.structs.replace(_classifier(config), scoring="softmax", per_token=True)]
    if architecture == "HF_ColBERT":
        return [Dense(folder="", bias=False, activation="identity")]
    if architecture.endswith("ForCausalLM") and template is not None and template.tokens is not None:
        no, yes = (_token_id(checkpoint, token) for token in template.tokens)
        return [Classifier(("LABEL_0",), "sigmoid", answers=(no, yes))]
    return []


def _token_id(checkpoint: Checkpoint, token: str) -> int:
    """The id of a word that is one token. Raises CheckpointError if it is not."""
    file = msgspec.json.decode(canonical_tokenizer(checkpoint.folder).text)
    added = {str(entry["content"]): int(entry["id"]) for entry in file.get("added_tokens") or ()}
    found = added.get(token, file["model"]["vocab"].get(token) if isinstance(file["model"]["vocab"], dict) else None)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.source}: the tokenizer has no token {token!r}, which the reranker answers with"
        )
    return int(found)


def _pooled_by(name: str, modules: Sequence[Module], architecture: str) -> list[Module]:
    """The modules with another pooling. Raises ConfigError if the architecture cannot have it."""
    if name == "splade":
        if not architecture.endswith("ForMaskedLM"):
            raise ConfigError(f"pooling splade needs a ...ForMaskedLM, and this is {architecture}")
        return [Splade()]
    chosen = Pooling(modes=(_pooling_mode(name),))
    return [chosen if isinstance(module, Pooling | Splade) else module for module in modules]


def _architecture(config: Mapping[str, Any]) -> str:
    """The name of the model's class. Raises CheckpointError if config.json has none."""
    names = config.get("architectures") or []
    if not names:
        raise CheckpointError(
            'config.json has no `architectures`; add the class that the weights belong to, such as ["BertModel"]'
        )
    return str(names[0])


def _classifier(config: Mapping[str, Any]) -> Classifier:
    """Labels and scoring by the rules of transformers' pipeline (`pipelines/text_classification.py`)."""
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    count = len(names) or int(config.get("num_labels") or 2)
    if not 1 <= count <= 1 << 20:  # the names of more would cost memory
        raise UnsupportedModelError(f"config.json: num_labels {count} is not a number from 1 to {1 << 20}")
    labels = tuple(names.get(index, f"LABEL_{index}") for index in range(count))
    by_problem: dict[Any, Scoring] = {
        "regression": "none",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    problem = config.get("problem_type")
    scoring = "sigmoid" if count == 1 and problem != "regression" else by_problem.get(problem, "softmax")
    return Classifier(labels, scoring)


def _modules(checkpoint: Checkpoint, config: Mapping[str, Any], architecture: str) -> list[Module]:
    """The modules after the transformer; one pooling if the folder is not a sentence-transformers model."""
    entries = checkpoint.read_json("modules.json", required=False)
    if entries is None:
        # As SentenceTransformer(folder) does: a causal language model pools its last token.
        is_causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
        return [Pooling(modes=("lasttoken" if is_causal else "mean",))]
    modules = [_module(checkpoint, entry) for entry in sorted(entries, key=lambda entry: entry["idx"])[1:]]
    if not modules:
        raise UnsupportedModelError("modules.json: nothing follows the transformer")
    first, *rest = (type(module) for module in modules)
    if first in {Splade, Classifier} and rest:
        raise UnsupportedModelError(f"modules.json: nothing may follow {first.__name__}")
    late = next((module for module in modules if isinstance(module, Dense) and module.per_token), None)
    if first is Pooling and late is not None:
        raise UnsupportedModelError(
            f"{late.folder}/config.json: Dense on token_embeddings is not supported after Pooling"
        )
    if first is Normalize or Pooling in rest or not {Splade, Classifier}.isdisjoint(rest):
        raise UnsupportedModelError(
            "modules.json: one Pooling must come first, or Dense where every token has a vector"
        )
    return modules


def _module(checkpoint: Checkpoint, entry: Mapping[str, Any]) -> Module:
    """The module of one entry of modules.json. Raises UnsupportedModelError for a type that BEI does not have."""
    kind, folder = str(entry["type"]).rsplit(".", 1)[-1], str(entry.get("path", ""))
    if kind == "Normalize":
        return Normalize()
    if kind not in _READERS:
        known = "Transformer, Pooling, Dense, Normalize, SpladePooling, LogitScore"
        raise UnsupportedModelError(f"modules.json: {entry['type']} is not one of {known}")
    return _READERS[kind](checkpoint.read_json(f"{folder}/config.json"), folder)


def _splade(config: Mapping[str, Any], folder: str) -> Splade:
    """A SpladePooling module. Raises UnsupportedModelError unless it is the maximum of log(1 + relu)."""
    for name, value in (("pooling_strategy", "max"), ("activation_function", "relu")):
        if config.get(name, value) != value:
            raise UnsupportedModelError(
                f"{folder}/config.json: {name} {config[name]!r} is not supported, only {value!r}"
            )
    return Splade()


def _logit_score(config: Mapping[str, Any], folder: str) -> Classifier:
    """A LogitScore module: the answer of a causal language model; without a token for "no", the logit of "yes"."""
    no = config.get("false_token_id")
    return Classifier(("LABEL_0",), "sigmoid", answers=(None if no is None else int(no), int(config["true_token_id"])))


def _pooling(config: Mapping[str, Any], folder: str) -> Pooling:
    """The pooling of `1_Pooling/config.json`, in its old form (flags) or its new one."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    names = tuple(_pooling_mode(mode) for mode in ([modes] if isinstance(modes, str) else modes))
    include_prompt = bool(config.get("include_prompt", True))
    if not include_prompt and not {"cls", "weightedmean"}.isdisjoint(names):
        raise UnsupportedModelError(
            f"{folder}/config.json: include_prompt false is not supported with {'+'.join(names)}"
        )
    return Pooling(names, include_prompt)


def _dense(config: Mapping[str, Any], folder: str) -> Dense:
    """A Dense module. Raises UnsupportedModelError for an activation that is not in the table."""
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{folder}/config.json: activation {activation!r}; known are {', '.join(sorted(_ACTIVATIONS))}"
        )
    return Dense(
        folder=folder,
        bias=bool(config.get("bias", True)),
        activation=_ACTIVATIONS[activation],
        residual=bool(config.get("use_residual", False)),
        per_token=config.get("module_input_name") == "token_embeddings",
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Module]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "SpladePooling": _splade,
    "LogitScore": _logit_score,
}


def _sentence_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """`sentence_bert_config.json`, under any of the names that sentence-transformers has used."""
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
        config = checkpoint.read_json(f"sentence_{kind}_config.json", required=False)
        if config is not None:
            return dict(config)
    return {}


def _max_seq_len(checkpoint: Checkpoint, config: Mapping[str, Any], sentence: Mapping[str, Any]) -> int:
    """The limit on an input's tokens: sentence-transformers', else the tokenizer's; at most the number of positions."""
    tokenizer = checkpoint.read_json("tokenizer_config.json", required=False) or {}
    asked = sentence.get("max_seq_length") or tokenizer.get("model_max_length") or tokenizer.get("max_len")
    table = config.get("max_position_embeddings") or config.get("n_positions")
    if table is not None and config.get("model_type") in {"roberta", "xlm-roberta", "camembert", "mpnet"}:
        table -= first_position(config)
    limits = [int(limit) for limit in (asked, table) if limit]
    if not limits:
        raise CheckpointError("neither sentence_bert_config.json, tokenizer_config.json nor config.json has a length")
    return min(limits)


def _pooling_mode(name: str) -> str:
    """The canonical name of a pooling mode. Raises ConfigError listing the known ones."""
    mode = _POOLING_ALIASES.get(name, name)
    if mode not in POOLING_MODES:
        raise ConfigError(f"unknown pooling {name!r}; known are {', '.join(POOLING_MODES)}")
    return mode


def first_position(config: Mapping[str, Any]) -> int:
    """The row of the position table for the first token, in the families that count positions from the padding id."""
    pad = config.get("pad_token_id")
    if pad is None or config.get("model_type") == "mpnet":  # MPNet's padding id is always 1
        return 2
    return int(pad) + 1


def save_spec(spec: ModelSpec, path: Path) -> None:
    """Writes the spec as JSON that `load_spec` reads back equal."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2))


def load_spec(path: Path) -> ModelSpec:
    """The spec that `save_spec` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=ModelSpec)
