"""The settings of the transformer (`sentence_bert_config.json`), the model (`config_sentence_transformers.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, TypeVar, cast

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.tasks import Similarity

SettingsT = TypeVar("SettingsT")
Count = Annotated[int, msgspec.Meta(ge=1)]
Options: TypeAlias = dict[str, Any]

# Arguments of transformers' classes that decide how a model is loaded, and not what it computes.
_HARMLESS = {
    "model": {
        "add_pooling_layer",
        "attn_implementation",
        "device_map",
        "dtype",
        "low_cpu_mem_usage",
        "torch_dtype",
        "trust_remote_code",
        "use_safetensors",
    },
    "processor": {"clean_up_tokenization_spaces", "model_max_length", "padding_side", "trust_remote_code", "use_fast"},
}
_HARMLESS_CALL = {"padding", "return_tensors", "logits_to_keep", "return_attention_mask"}


class TransformerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`sentence_bert_config.json`."""

    max_seq_length: Count | None = None
    do_lower_case: bool = False
    transformer_task: str | None = None
    modality_config: dict[str, Options] | None = None
    processing_kwargs: dict[str, Options] | None = None
    model_args: Options = {}
    model_kwargs: Options = {}
    tokenizer_args: Options = {}
    processor_kwargs: Options = {}
    config_args: Options = {}
    config_kwargs: Options = {}

    @property
    def max_length(self) -> int | None:
        """The limit on a text's tokens that replaces the tokenizer's own."""
        return {**self.tokenizer_args, **self.processor_kwargs}.get("model_max_length") or self.max_seq_length


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`config_sentence_transformers.json`."""

    model_type: str = "SentenceTransformer"
    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: Count | None = None
    activation_fn: str | None = None

    @property
    def similarity(self) -> Similarity:
        """How the model compares two vectors; sentence-transformers takes cosine for a name that is not one of these.

        MultiVectorEncoder writes the name of another function, such as maxsim.
        """
        known = ("cosine", "dot", "euclidean", "manhattan")
        return cast("Similarity", self.similarity_fn_name if self.similarity_fn_name in known else "cosine")


def read_settings(checkpoint: Checkpoint, name: str, kind: type[SettingsT], *, required: bool = True) -> SettingsT:
    """The content of a JSON file as a struct; of a file that is not required and not there, the defaults.

    Raises CheckpointError naming the file, and the field that is malformed.
    """
    return convert(checkpoint.read_json(name, required=required) or {}, kind, name)


def read_transformer(checkpoint: Checkpoint) -> TransformerSettings:
    """The transformer's settings, under any of the names that sentence-transformers has used for the file.

    Raises CheckpointError for a malformed field, UnsupportedModelError for one that changes what is computed.
    """
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
        name = checkpoint.in_first_module(f"sentence_{kind}_config.json")
        if (checkpoint.folder / name).is_file():
            settings = read_settings(checkpoint, name, TransformerSettings)
            _check_transformer(settings, name)
            return settings
    return TransformerSettings()


def read_model_settings(checkpoint: Checkpoint) -> ModelSettings:
    """The model's settings. Raises CheckpointError for a malformed field or a default prompt that is no prompt."""
    name = "config_sentence_transformers.json"
    settings = read_settings(checkpoint, name, ModelSettings, required=False)
    known = {"query", "document", *(settings.prompts or ())}
    if settings.default_prompt_name is not None and settings.default_prompt_name not in known:
        raise CheckpointError(
            f"{name}: default_prompt_name {settings.default_prompt_name!r} is not one of the prompts, which are "
            f"{', '.join(sorted(known))}"
        )
    return settings


def convert(content: object, kind: type[SettingsT], name: str) -> SettingsT:
    """JSON as a struct. Raises CheckpointError naming the field that is malformed."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        field = place.strip("`.")
        raise CheckpointError(f"{name}: {field + ': ' if field else ''}{reason[0].lower()}{reason[1:]}") from error


def _check_transformer(settings: TransformerSettings, name: str) -> None:
    """Raises UnsupportedModelError, naming the field, for settings that change what is computed."""
    tasks = ("feature-extraction", "fill-mask", "sequence-classification", "text-generation")
    task = settings.transformer_task
    if task not in (None, *tasks):
        raise UnsupportedModelError(f"{name}: transformer_task {task!r} is not supported; supported are {tasks}")
    _check_modalities(settings.modality_config, task, name)
    for field, known in (("model_args", "model"), ("model_kwargs", "model")):
        _refuse(getattr(settings, field), _HARMLESS[known], f"{name}: {field}")
    for field in ("tokenizer_args", "processor_kwargs"):
        options = getattr(settings, field)
        _refuse(options, _HARMLESS["processor"], f"{name}: {field}")
        convert(options.get("model_max_length"), Count | None, f"{name}: {field}.model_max_length")  # type: ignore[arg-type]
    for part in ("text", "common"):
        _refuse((settings.processing_kwargs or {}).get(part, {}), _HARMLESS_CALL, f"{name}: processing_kwargs.{part}")


def _check_modalities(modalities: Mapping[str, Options] | None, task: str | None, name: str) -> None:
    """Raises UnsupportedModelError unless a text is given to the model's `forward` as it is, and its output is used."""
    if modalities is None:
        return
    if "message" in modalities and task != "text-generation":  # whose pairs a rerank_template puts in a prompt
        raise UnsupportedModelError(f"{name}: modality_config.message (texts in a chat template) is not supported")
    output = "last_hidden_state" if task in {None, "feature-extraction"} else "logits"
    text = modalities.get("text", {})
    outputs = text.get("method_output_name")
    if text.get("method") != "forward" or outputs not in (output, [output]):
        raise UnsupportedModelError(
            f"{name}: modality_config.text is not supported unless its method is forward and its method_output_name "
            f"{output}; it is {text or 'missing'}"
        )


def _refuse(options: Options, known: set[str], where: str) -> None:
    """Raises UnsupportedModelError naming an option that is not one of those that change nothing."""
    for option in options.keys() - known:
        raise UnsupportedModelError(f"{where}.{option} is not supported")
