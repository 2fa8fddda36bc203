"""Reads the settings in `sentence_bert_config.json` (transformer) and `config_sentence_transformers.json` (model)."""

from __future__ import annotations

import logging
from typing import Annotated, Any, TypeAlias, TypeVar, cast

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.tasks import Similarity
from bei_core.text.chat_template import MessageFormat, read_chat_template
from bei_core.text.sandbox import SandboxError
from bei_core.text.templates import RerankTemplate

log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT")
MODEL_SETTINGS = "config_sentence_transformers.json"
_WITH_MESSAGES = "sentence_bert_config.json"  # the name since sentence-transformers 5, which first had chat templates
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

# The arguments of apply_chat_template, and one of sentence-transformers, that are no variables of the template.
_OF_THE_CALL = {
    "chat_template",
    "continue_final_message",
    "documents",
    "max_length",
    "restore_suffix",
    "return_assistant_tokens_mask",
    "return_dict",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
}


class TransformerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`sentence_bert_config.json`."""

    max_seq_length: Count | None = None
    do_lower_case: bool | None = False
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
    def message(self) -> Options | None:
        """How sentence-transformers puts a text or a pair in a chat template; None if it does not."""
        return (self.modality_config or {}).get("message")

    @property
    def chat_arguments(self) -> Options:
        """The variables that the files give to the chat template."""
        given = (self.processing_kwargs or {}).get("chat_template", {})
        return {name: value for name, value in given.items() if name not in _HARMLESS_CALL}

    @property
    def max_length(self) -> int | None:
        """The limit on a text's tokens, which replaces the tokenizer's limit; None if no file gives one."""
        return {**self.tokenizer_args, **self.processor_kwargs}.get("model_max_length") or self.max_seq_length


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`config_sentence_transformers.json`."""

    model_type: str = "SentenceTransformer"
    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: Count | None = None
    activation_fn: str | None = None
    query_prefix: str | None = None  # PyLate's
    document_prefix: str | None = None

    @property
    def is_cross_encoder(self) -> bool:
        """Whether the model scores pairs of texts."""
        return self.model_type == "CrossEncoder"

    @property
    def pair_prompt(self) -> str:
        """The default prompt of a CrossEncoder, the same for every pair; "" if there is none."""
        return ((self.prompts or {}).get(self.default_prompt_name or "") or "") if self.is_cross_encoder else ""

    @property
    def marks_tasks(self) -> bool:
        """Whether PyLate or MultiVectorEncoder wrote the file: queries and documents differ in more than a prompt."""
        is_pylate = self.query_prefix is not None or self.document_prefix is not None
        return is_pylate or self.model_type == "MultiVectorEncoder"

    @property
    def served_prompts(self) -> dict[str, str]:
        """The prompts by name, without "query" and "document" of PyLate and MultiVectorEncoder.

        These pad queries with mask tokens and drop punctuation from documents, which BEI does not do.
        """
        left_out = {"query", "document"} if self.marks_tasks else set()
        return {name: text for name, text in (self.prompts or {}).items() if text is not None and name not in left_out}

    @property
    def similarity(self) -> Similarity:
        """How the model compares two vectors; cosine for an unknown name, as in sentence-transformers.

        MultiVectorEncoder writes other names, such as maxsim.
        """
        known = ("cosine", "dot", "euclidean", "manhattan")
        return cast("Similarity", self.similarity_fn_name if self.similarity_fn_name in known else "cosine")


def read_settings(checkpoint: Checkpoint, name: str, kind: type[SettingsT], *, required: bool = True) -> SettingsT:
    """Returns the content of a JSON file as a struct; its defaults if the file is missing and not required.

    Raises CheckpointError naming the missing file, or the malformed field.
    """
    return convert(checkpoint.read_json(name, required=required) or {}, kind, name)


def read_transformer(checkpoint: Checkpoint) -> TransformerSettings:
    """Returns the transformer's settings, from any file name that sentence-transformers has used.

    StaticEmbedding reads no such file, so one that another model left in its folder does not count.

    Raises CheckpointError for a malformed field, UnsupportedModelError for a field that would change the results and is
    not supported.
    """
    if any(str(module.get("type")).endswith(".StaticEmbedding") for module in checkpoint.route.modules[:1]):
        return TransformerSettings()
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
        name = checkpoint.in_first_module(f"sentence_{kind}_config.json")
        if (checkpoint.folder / name).is_file():
            settings = read_settings(checkpoint, name, TransformerSettings)
            _check_transformer(settings, name)
            return settings
    return TransformerSettings()


def read_model_settings(checkpoint: Checkpoint) -> ModelSettings:
    """Returns the model's settings.

    Raises CheckpointError for a malformed field or an unknown default prompt, UnsupportedModelError for one of a model
    with a vector per token.
    """
    name = MODEL_SETTINGS
    settings = read_settings(checkpoint, name, ModelSettings, required=False)
    known = {"query", "document", *(settings.prompts or ())}
    if settings.default_prompt_name is not None and settings.default_prompt_name not in known:
        raise CheckpointError(
            f"{name}: default_prompt_name {settings.default_prompt_name!r} is not one of the prompts, which are "
            f"{', '.join(sorted(known))}"
        )
    if settings.default_prompt_name is not None and settings.marks_tasks:
        raise UnsupportedModelError(
            f"{name}: default_prompt_name is not supported for PyLate and MultiVectorEncoder, whose queries "
            "differ from documents in more than a prompt"
        )
    return settings


def read_own_template(
    checkpoint: Checkpoint, settings: TransformerSettings, known: RerankTemplate | None
) -> tuple[RerankTemplate | None, str]:
    """Returns a model's own rerank template, which is its chat template, else that of its name (`known`).

    If the model needs its chat template, and there is none or it is not supported, also returns why. Raises
    CheckpointError for a malformed file.
    """
    if settings.message is None:
        return known, ""
    try:
        form = _checked_format(settings)
        found = read_chat_template(checkpoint.folder / checkpoint.first_module, form, settings.chat_arguments)
    except SandboxError as fault:
        if known is None:
            return None, str(fault)
        log.warning("%s; the template of the model's name is used, %s", fault, known.name)
        return known, ""
    except UnsupportedModelError as fault:
        return None, str(fault)
    lacks = "the model reads a query and a document in a chat template (modality_config.message), and has none"
    return (found, "") if found is not None else (known, "" if known else lacks)


def convert(content: object, kind: type[SettingsT], name: str) -> SettingsT:
    """Returns JSON as a struct. Raises CheckpointError naming the malformed field of the file `name`."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        field = place.strip("`.")
        raise CheckpointError(f"{name}: {field + ': ' if field else ''}{reason[0].lower()}{reason[1:]}") from error


def _check_transformer(settings: TransformerSettings, name: str) -> None:
    """Raises UnsupportedModelError naming a setting that would change the results and is not supported."""
    tasks = ("feature-extraction", "fill-mask", "sequence-classification", "text-generation")
    task = settings.transformer_task
    if task not in (None, *tasks):
        raise UnsupportedModelError(f"{name}: transformer_task {task!r} is not supported; supported are {tasks}")
    _check_modalities(settings, name)
    for field, known in (("model_args", "model"), ("model_kwargs", "model")):
        _refuse(getattr(settings, field), _HARMLESS[known], f"{name}: {field}")
    for field in ("tokenizer_args", "processor_kwargs"):
        options = getattr(settings, field)
        _refuse(options, _HARMLESS["processor"], f"{name}: {field}")
        convert(options.get("model_max_length"), Count | None, f"{name}: {field}.model_max_length")  # type: ignore[arg-type]
    for part in ("text", "common"):
        _refuse((settings.processing_kwargs or {}).get(part, {}), _HARMLESS_CALL, f"{name}: processing_kwargs.{part}")


def _check_modalities(settings: TransformerSettings, name: str) -> None:
    """Raises UnsupportedModelError unless the model's `forward` gets texts or pairs, and gives the usual output."""
    modalities, task = settings.modality_config, settings.transformer_task
    if modalities is None:
        return
    is_scored = task in {"text-generation", "sequence-classification"}
    output = "logits" if is_scored or task == "fill-mask" else "last_hidden_state"
    if "message" in modalities and not is_scored:
        raise UnsupportedModelError(
            f"{name}: modality_config.message is supported for rerankers only; sentence-transformers puts every text "
            "in the model's chat template, and the vectors of plain texts are others"
        )
    _check_method(modalities, "text", output, f"{name}: modality_config")


def _check_method(modalities: dict[str, Options], kind: str, output: str, where: str) -> None:
    """Raises UnsupportedModelError unless the model's `forward` gets this kind of inputs and gives `output`."""
    given = modalities.get(kind, {})
    if given.get("method") != "forward" or given.get("method_output_name") not in (output, [output]):
        raise UnsupportedModelError(
            f"{where}.{kind} must have the method forward and the method_output_name {output}; it is "
            f"{given or 'missing'}"
        )


def _checked_format(settings: TransformerSettings) -> MessageFormat:
    """Returns the form of the messages of a reranker with a chat template.

    Raises UnsupportedModelError for a setting of it that is not supported. Only a rerank_template can replace it.
    """
    modalities = settings.modality_config or {}
    _check_method(modalities, "message", "logits", f"{_WITH_MESSAGES}: modality_config")
    form = modalities["message"].get("format")
    if form not in ("flat", "structured"):
        raise UnsupportedModelError(
            f"{_WITH_MESSAGES}: modality_config.message.format must be flat or structured; it is {form!r}"
        )
    for option in sorted((settings.processing_kwargs or {}).get("chat_template", {}).keys() & _OF_THE_CALL):
        raise UnsupportedModelError(f"{_WITH_MESSAGES}: processing_kwargs.chat_template.{option} is not supported")
    return cast("MessageFormat", form)


def _refuse(options: Options, known: set[str], where: str) -> None:
    """Raises UnsupportedModelError for an option that is not in `known`, the options that do not change the results."""
    for option in options.keys() - known:
        raise UnsupportedModelError(f"{where}.{option} is not supported")
