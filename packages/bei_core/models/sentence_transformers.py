"""The files of sentence-transformers: modules.json with one folder per module, and sentence_bert_config.json.

The rules are those of sentence-transformers 6.2 (`sentence_transformer/modules/pooling.py`,
`base/modules/{dense,transformer}.py`, `sparse_encoder/modules/splade_pooling.py`,
`cross_encoder/modules/logit_score.py`), which also reads the files of its older releases, of ColBERT and of PyLate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bei_core.checkpoint import Checkpoint
from bei_core.errors import UnsupportedModelError
from bei_core.models.modules import Classifier, Dense, Module, Normalize, Pooling, Splade
from bei_core.models.pooling import PoolingMode

_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}


def read_modules(checkpoint: Checkpoint, config: Mapping[str, Any], architecture: str) -> list[Module]:
    """The modules after the transformer; one pooling if the folder is not a sentence-transformers model."""
    entries = checkpoint.read_json("modules.json", required=False)
    if entries is None:
        # As SentenceTransformer(folder) does: a causal language model pools its last token.
        is_causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
        return [Pooling(modes=(PoolingMode.LAST_TOKEN if is_causal else PoolingMode.MEAN,))]
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
    return Classifier(
        ("LABEL_0",), "sigmoid", yes_no_ids=(None if no is None else int(no), int(config["true_token_id"]))
    )


def _pooling(config: Mapping[str, Any], folder: str) -> Pooling:
    """The pooling of `1_Pooling/config.json`, in its old form (flags) or its new one."""
    names = config.get("pooling_mode")
    if names is None:
        names = [mode for mode in PoolingMode if config.get(mode.flag)] or [PoolingMode.MEAN]
    modes = tuple(PoolingMode.named(name) for name in ([names] if isinstance(names, str) else names))
    include_prompt = bool(config.get("include_prompt", True))
    if not include_prompt and any(mode.by_position for mode in modes):
        raise UnsupportedModelError(
            f"{folder}/config.json: include_prompt false is not supported with {'+'.join(modes)}"
        )
    return Pooling(modes, include_prompt)


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


def read_sentence_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """`sentence_bert_config.json`, under any of the names that sentence-transformers has used."""
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
        config = checkpoint.read_json(f"sentence_{kind}_config.json", required=False)
        if config is not None:
            return dict(config)
    return {}
