"""Reads the modules of a model: modules.json, and the config.json in the folder of each module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias, cast

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import module_folder
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.modules import Classifier, Dense, LayerNorm, Module, Normalize, Pooling, Splade
from bei_core.models.pooling import PoolingMode
from bei_core.models.sentence.settings import Count, TransformerSettings, convert, read_settings

# What the first module computes: a value of `transformer_task`, or "static" for a table with a vector per token id.
Task: TypeAlias = Literal["feature-extraction", "fill-mask", "sequence-classification", "text-generation", "static"]

_FIRST: Mapping[str, Task] = {
    "Transformer": "feature-extraction",
    "MLMTransformer": "fill-mask",
    "StaticEmbedding": "static",
}
_SCORES = "scores"  # the name of CrossEncoder's output
_PACKAGES = ("sentence_transformers.", "pylate.")

# Classes of torch.nn with their default arguments, to the names in the engines' tables of activations.
_ACTIVATIONS = {
    "ELU": "elu",
    "GELU": "gelu",
    "Hardswish": "hardswish",
    "Identity": "identity",
    "LeakyReLU": "leaky_relu",
    "Mish": "mish",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "SELU": "selu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


class Pipeline(NamedTuple):
    """The modules of a model."""

    task: Task  # of the first module
    modules: list[Module]  # the other modules; empty if the head of the transformer's class takes their place
    num_scores: int = 0  # of a CrossEncoder whose last module, a Dense, gives the scores


class _Entry(msgspec.Struct, frozen=True):
    """An entry of modules.json. sentence-transformers ignores its field `idx`, and so does BEI."""

    type: str
    name: str
    path: str


def read_pipeline(checkpoint: Checkpoint, transformer: TransformerSettings) -> Pipeline | None:
    """Returns the modules in the order of modules.json; None if there is no such file.

    Raises CheckpointError for a malformed file, UnsupportedModelError for a module or an order that is not supported.
    """
    if checkpoint.read_json("modules.json", required=False) is None:
        return None
    entries = convert(checkpoint.route.modules, list[_Entry], "modules.json")
    if len({entry.name for entry in entries}) < len(entries):
        raise CheckpointError("modules.json: two modules have the same name")
    if not entries:
        raise UnsupportedModelError("modules.json names no module")
    task = first_task(entries[0].type)
    if transformer.transformer_task is not None:
        task = cast("Task", transformer.transformer_task)
    modules = [module for entry in entries[1:] if (module := _module(checkpoint, entry, task)) is not None]
    if task == "static":
        modules = [Pooling((PoolingMode.MEAN,)), *modules]
    return Pipeline(task, _checked(modules, task), _num_scores(checkpoint, modules))


def first_task(name: str) -> Task:
    """Returns what the first module computes, by its type. Raises UnsupportedModelError if it is not supported."""
    known = _FIRST.get(_class_of(name))
    if known is None:
        raise UnsupportedModelError(
            f"modules.json: {name} is not supported as the first module; supported are {', '.join(_FIRST)}"
        )
    return known


def _class_of(name: str) -> str:
    """Returns the class in a module's type. Raises UnsupportedModelError for code in the model's repository."""
    if not name.startswith(_PACKAGES):
        raise UnsupportedModelError(
            f"modules.json: {name} is not a class of sentence-transformers; BEI does not run a repository's own code"
        )
    return name.rpartition(".")[2]


def _module(checkpoint: Checkpoint, entry: _Entry, task: Task) -> Module | None:
    """Returns the module of one entry of modules.json; None for Dropout, which changes nothing, and MultiVectorMask.

    MultiVectorMask drops the vectors of some tokens of documents. BEI gives those of all tokens, as for PyLate.

    Raises UnsupportedModelError for a type that is not supported.
    """
    kind, folder = _class_of(entry.type), module_folder({"path": entry.path})
    if kind == "Dropout":
        return None
    if kind == "MultiVectorMask":
        _check_mask(checkpoint, folder)
        return None
    if kind not in _READERS:
        raise UnsupportedModelError(
            f"modules.json: {entry.type} is not supported; supported are Transformer, {', '.join(_READERS)}, Dropout"
        )
    if kind == "SpladePooling" and task != "fill-mask":
        raise UnsupportedModelError(f"modules.json: SpladePooling needs the task fill-mask, and the model's is {task}")
    return _READERS[kind](checkpoint, folder)


def _checked(modules: list[Module], task: Task) -> list[Module]:
    """Returns the modules unchanged. Raises UnsupportedModelError for an order that is not supported."""
    if not modules:
        return modules
    if task == "sequence-classification":
        raise UnsupportedModelError("modules.json: nothing may follow a sequence classifier")
    first, *rest = (type(module) for module in modules)
    if first in {Splade, Classifier} and rest:
        raise UnsupportedModelError(f"modules.json: nothing may follow {first.__name__}")
    if (first is Splade) != (task == "fill-mask") or (first is Classifier) != (task == "text-generation"):
        raise UnsupportedModelError(f"modules.json: {first.__name__} may not follow a transformer for {task}")
    _check_tokens(modules)
    begins = first in {Normalize, LayerNorm} and not (isinstance(modules[0], Normalize) and modules[0].per_token)
    if begins or Pooling in rest or not {Splade, Classifier}.isdisjoint(rest):
        raise UnsupportedModelError(
            "modules.json: one Pooling must follow the transformer, or Dense for a model with a vector per token"
        )
    return modules


def _check_tokens(modules: Sequence[Module]) -> None:
    """Raises UnsupportedModelError for a module on the vectors of tokens, if another module pools them."""
    pooling = next((place for place, module in enumerate(modules) if isinstance(module, Pooling)), None)
    if pooling is None:
        return
    for place, module in enumerate(modules):
        if isinstance(module, Dense | Normalize) and (module.per_token or place < pooling):
            file = f"{module.folder}/config.json" if isinstance(module, Dense) else "modules.json"
            order = "is not supported before" if place < pooling else "on token_embeddings is not supported after"
            raise UnsupportedModelError(f"{file}: {type(module).__name__} {order} Pooling")


def _num_scores(checkpoint: Checkpoint, modules: Sequence[Module]) -> int:
    """Returns how many scores of a pair the last module gives, a Dense with the output "scores"; 0 for other models.

    Raises UnsupportedModelError if another module gives them, or if vectors are not pooled.
    """
    folders = [module.folder if isinstance(module, Dense) else None for module in modules]
    read = [_DenseConfig() if folder is None else _dense_config(checkpoint, folder) for folder in folders]
    gives = [config.module_output_name == _SCORES for config in read]
    if not any(gives):
        return 0
    count = read[-1].out_features
    if gives.index(True) < len(gives) - 1 or not isinstance(modules[0], Pooling) or count is None:
        raise UnsupportedModelError(
            f"{folders[gives.index(True)]}/config.json: module_output_name {_SCORES!r} is supported for the last "
            "module, after a Pooling and with out_features"
        )
    return count


class _PoolingConfig(msgspec.Struct, frozen=True):
    """`1_Pooling/config.json` of sentence-transformers >= 5.4; older files have a flag for each mode."""

    pooling_mode: str | Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    include_prompt: bool | None = True  # null counts as false


def _pooling(checkpoint: Checkpoint, folder: str) -> Pooling:
    name = f"{folder}/config.json"
    config, flags = read_settings(checkpoint, name, _PoolingConfig), checkpoint.read_json(name)
    names = config.pooling_mode
    if names is None:
        for mode in PoolingMode:
            if not isinstance(flags.get(mode.flag), bool | None):
                raise CheckpointError(f"{name}: {mode.flag} {flags[mode.flag]!r} is not true or false")
        names = [mode for mode in PoolingMode if flags.get(mode.flag)] or [PoolingMode.MEAN]
    modes = tuple(PoolingMode.named(name) for name in ([names] if isinstance(names, str) else names))
    if not config.include_prompt and any(mode.by_position for mode in modes):
        raise UnsupportedModelError(f"{name}: include_prompt false is not supported with {'+'.join(modes)}")
    return Pooling(modes, bool(config.include_prompt))


class _DenseConfig(msgspec.Struct, frozen=True):
    """`2_Dense/config.json`."""

    in_features: Count | None = None
    out_features: Count | None = None
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"
    use_residual: bool = False
    module_input_name: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding"
    module_output_name: str | None = None


def _dense_config(checkpoint: Checkpoint, folder: str) -> _DenseConfig:
    return read_settings(checkpoint, f"{folder}/config.json", _DenseConfig)


def _dense(checkpoint: Checkpoint, folder: str) -> Dense:
    name, config = f"{folder}/config.json", _dense_config(checkpoint, folder)
    package, _, activation = config.activation_function.rpartition(".")
    if activation not in _ACTIVATIONS or not f"{package}.".startswith("torch."):
        raise UnsupportedModelError(
            f"{name}: activation {config.activation_function!r} is not supported; supported are torch.nn's "
            f"{', '.join(_ACTIVATIONS)}"
        )
    gives_scores = config.module_input_name == "sentence_embedding" and config.module_output_name == _SCORES
    _check_output(config.module_input_name, None if gives_scores else config.module_output_name, name)
    return Dense(
        folder=folder,
        bias=config.bias,
        activation=_ACTIVATIONS[activation],
        residual=config.use_residual,
        per_token=config.module_input_name == "token_embeddings",
    )


def check_dense_sizes(checkpoint: Checkpoint, folder: str, name: str, shape: tuple[int, ...]) -> None:
    """Raises CheckpointError if a Dense module's matrix `name` has another shape than [out_features, in_features].

    A size that the module's config.json does not give is not checked.
    """
    config = _dense_config(checkpoint, folder)
    sizes = (("out_features", config.out_features, "rows"), ("in_features", config.in_features, "columns"))
    for (field, given, what), found in zip(sizes, shape, strict=False):
        if given not in (None, found):
            raise CheckpointError(f"{folder}/config.json: {field} is {given}, but {name} has {found} {what}")


class _NormalizeConfig(msgspec.Struct, frozen=True):
    """`3_Normalize/config.json`, which older releases do not write."""

    module_input_name: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding"
    module_output_name: str | None = None


def _normalize(checkpoint: Checkpoint, folder: str) -> Normalize:
    name = f"{folder}/config.json"
    config = read_settings(checkpoint, name, _NormalizeConfig, required=False)
    _check_output(config.module_input_name, config.module_output_name, name)
    return Normalize(config.module_input_name == "token_embeddings")


class _MaskConfig(msgspec.Struct, frozen=True):
    """`2_MultiVectorMask/config.json`."""

    keep_only_token_ids: list[int] | None = None


def _check_mask(checkpoint: Checkpoint, folder: str) -> None:
    """Raises UnsupportedModelError if MultiVectorMask keeps the tokens of images only."""
    name = f"{folder}/config.json"
    if read_settings(checkpoint, name, _MaskConfig).keep_only_token_ids:
        raise UnsupportedModelError(f"{name}: keep_only_token_ids is not supported")


def _check_output(given: str, made: str | None, name: str) -> None:
    """Raises UnsupportedModelError if the module writes its output under another name (`made`) than its input's."""
    if made not in (None, given):
        raise UnsupportedModelError(f"{name}: module_output_name {made!r} is not supported with the input {given!r}")


class _SpladeConfig(msgspec.Struct, frozen=True):
    """`1_SpladePooling/config.json`."""

    pooling_strategy: Literal["max", "sum"] = "max"
    activation_function: Literal["relu", "log1p_relu"] = "relu"


def _splade(checkpoint: Checkpoint, folder: str) -> Splade:
    config = read_settings(checkpoint, f"{folder}/config.json", _SpladeConfig)
    return Splade(config.pooling_strategy == "sum", 2 if config.activation_function == "log1p_relu" else 1)


class _LogitScoreConfig(msgspec.Struct, frozen=True):
    """`1_LogitScore/config.json`."""

    true_token_id: int
    false_token_id: int | None = None


def _logit_score(checkpoint: Checkpoint, folder: str) -> Classifier:
    """Returns the head that scores by the logits of the tokens "yes" and "no"; without "no", by that of "yes"."""
    config = read_settings(checkpoint, f"{folder}/config.json", _LogitScoreConfig)
    return Classifier(("LABEL_0",), "sigmoid", yes_no_ids=(config.false_token_id, config.true_token_id))


_READERS: Mapping[str, Callable[[Checkpoint, str], Module]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": lambda checkpoint, folder: LayerNorm(folder),
    "Normalize": _normalize,
    "SpladePooling": _splade,
    "LogitScore": _logit_score,
}
