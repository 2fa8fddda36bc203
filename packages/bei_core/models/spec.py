"""`ModelSpec`, the description of a model that engines and tokenizers need; `read_spec` makes it from a model's folder.

It reads transformers' `config.json`, and the files of sentence-transformers (`models/sentence`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.errors import ConfigError, UnsupportedModelError
from bei_core.models.bge_m3 import read_bge_m3
from bei_core.models.classifier import read_head, reranker_class, scored, scores_of_modules
from bei_core.models.kind import Kind
from bei_core.models.modules import BgeM3, Classifier, Dense, Module, Normalize, Pooling, Scores, Splade, Truncate
from bei_core.models.pooling import SPLADE, PoolingMode
from bei_core.models.sentence.modules import Pipeline, read_pipeline
from bei_core.models.sentence.settings import (
    MODEL_SETTINGS,
    ModelSettings,
    read_model_settings,
    read_own_template,
    read_transformer,
)
from bei_core.models.transformer import is_static_model, read_config, read_max_seq_len
from bei_core.tasks import Similarity
from bei_core.text.templates import EXAMPLE, RerankTemplate, find_template, with_instruction

# In the names of classes with heads of their own, such as Qwen2ForRewardModel and LlamaForRewardModelWithGating.
_GIVES_SCORES = re.compile("Reward|Rank|Scor|Classif|Regress")


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a model except its weights and its vocabulary."""

    architecture: str  # config.json's `architectures[0]`
    config: dict[str, Any]  # config.json
    modules: tuple[Module, ...]  # the modules after the transformer, in order, without Normalize at the end
    normalize: bool  # whether Normalize is at the end
    max_seq_len: int  # tokens of one input, special tokens included
    do_lower_case: bool = False  # of sentence_bert_config.json: texts are lower-cased before they are tokenized
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    similarity: Similarity = "cosine"  # how the model's vectors are compared
    template: RerankTemplate | None = None  # makes one text of a reranker's query and document
    template_fault: str = ""  # why the chat template of a model that needs it cannot be its template
    bge_m3: BgeM3 | None = None  # two linear layers beside the modules

    @property
    def classifier(self) -> Classifier | None:
        """The classifier; None for a model that gives vectors."""
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

    @property
    def is_late_interaction(self) -> bool:
        """Whether the model gives vectors of tokens only."""
        return self.kind is Kind.LATE_INTERACTION

    def pools_by(self, name: str) -> bool:
        """Whether the setting `pooling` with this value would give the same model; it has no effect on a classifier."""
        if name == SPLADE:
            return self.kind is Kind.SPARSE
        modes = [module.modes for module in self.modules if isinstance(module, Pooling)]
        return self.classifier is not None or modes == [(PoolingMode.named(name),)]

    def scores_by(self, template: RerankTemplate) -> bool:
        """Whether the model scores by the template's answers; a template without answers fits every classifier."""
        if self.classifier is None:
            return False
        built = None if self.template is None or self.classifier.yes_no_ids is None else self.template.tokens
        return built is None or template.tokens in {None, built}

    @property
    def pools_prompt(self) -> bool:
        """Whether pooling includes the tokens of a prompt."""
        return all(module.include_prompt for module in self.modules if isinstance(module, Pooling))

    @property
    def is_static(self) -> bool:
        """Whether the model is a table of token vectors, without a transformer."""
        return is_static_model(self.config)

    @property
    def dense_folders(self) -> list[str]:
        """The folders of the Dense modules."""
        return [module.folder for module in self.modules if isinstance(module, Dense)]

    @property
    def vocab_size(self) -> int:
        """The number of token ids that the model knows."""
        return int(self.config["vocab_size"])


def read_spec(
    checkpoint: Checkpoint, *, pooling: str | None = None, template: RerankTemplate | None = None
) -> ModelSpec:
    """Returns the spec of a model folder; `pooling` and `template` replace those of the folder and of the model's name.

    Raises CheckpointError for a missing or malformed file, UnsupportedModelError for a module that is not supported,
    ConfigError for a pooling or a template that does not fit the model.
    """
    transformer, settings = read_transformer(checkpoint), read_model_settings(checkpoint)
    pipeline = read_pipeline(checkpoint, transformer)
    is_static = pipeline is not None and pipeline.task == "static"
    architecture, config = read_config(checkpoint, transformer, None if pipeline is None else pipeline.task)
    known = find_template(checkpoint.source) or find_template(reranker_class(architecture, config))
    asked, fault = template is not None, ""
    if template is not None:
        template = _with_tokens(template, known)
    else:
        template, fault = read_own_template(checkpoint, transformer, known)
    if settings.pair_prompt and not fault:
        template = with_instruction(template, settings.pair_prompt, MODEL_SETTINGS)
    modules = _modules(checkpoint, architecture, config, pipeline, template, is_pooled=pooling is not None)
    modules = [scored(m, config, settings) if isinstance(m, Classifier) else m for m in modules]
    classifier = next((module for module in modules if isinstance(module, Classifier)), None)
    if classifier is None:
        _check_scores_asked(architecture, settings, is_template_given=asked)
    if transformer.message is not None and (classifier is None or len(classifier.labels) != 1):
        raise UnsupportedModelError(
            "modality_config.message (texts in a chat template) is supported for models with one score for a query and "
            f"a document; {architecture} with these modules gives {len(classifier.labels) if classifier else 'vectors'}"
        )
    if pooling is not None:
        modules = _pooled_by(pooling, modules, architecture)
    _check_default_prompt(settings, checkpoint.route.others)
    if settings.truncate_dim is not None and isinstance(modules[0], Pooling) and not isinstance(modules[-1], Scores):
        modules = [*modules, Truncate(settings.truncate_dim)]
    normalize = isinstance(modules[-1], Normalize) and len(modules) > 1
    return ModelSpec(
        architecture=architecture,
        config=config,
        modules=tuple(modules[:-1] if normalize else modules),
        normalize=normalize,
        max_seq_len=read_max_seq_len(checkpoint, config, transformer),
        do_lower_case=bool(transformer.do_lower_case),
        prompts={name: text for name, text in settings.served_prompts.items() if name not in checkpoint.route.others},
        default_prompt_name=None if settings.pair_prompt else settings.default_prompt_name,
        similarity=settings.similarity,
        template=template,
        template_fault=fault,
        bge_m3=None if is_static else read_bge_m3(checkpoint, modules),
    )


def _modules(
    checkpoint: Checkpoint,
    architecture: str,
    config: Mapping[str, Any],
    pipeline: Pipeline | None,
    template: RerankTemplate | None,
    *,
    is_pooled: bool,
) -> list[Module]:
    """Returns what follows the transformer: the modules of modules.json, else the head of its class, else a Pooling.

    `is_pooled`: the setting `pooling` asks for vectors, also of a class whose own head is not supported.
    """
    head = read_head(checkpoint, config, architecture, template)
    classifier = head[0] if head and isinstance(head[0], Classifier) else None
    if classifier is not None and classifier.yes_no_ids is not None:
        return head
    if pipeline is not None:
        if not pipeline.modules and not head:
            raise UnsupportedModelError("modules.json: no module follows the transformer")
        scores = [scores_of_modules(config, pipeline.num_scores)] if pipeline.num_scores else []
        return [*pipeline.modules, *scores] or head
    if not head and not is_pooled and _GIVES_SCORES.search(architecture):
        raise UnsupportedModelError(
            f"architecture {architecture} is not supported: by its name it gives scores, and BEI computes those of "
            "...ForSequenceClassification and ...ForTokenClassification; without its head it gives vectors: "
            "set pooling if they are wanted"
        )
    # As in SentenceTransformer(folder), a causal language model pools its last token.
    is_causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
    return head or [Pooling(modes=(PoolingMode.LAST_TOKEN if is_causal else PoolingMode.MEAN,))]


def _with_tokens(template: RerankTemplate, own: RerankTemplate | None) -> RerankTemplate:
    """Returns the template; if it names no answers, with those of the model's own template (`own`)."""
    if template.tokens is not None or own is None:
        return template
    return msgspec.structs.replace(template, tokens=own.tokens)


def _check_scores_asked(architecture: str, settings: ModelSettings, *, is_template_given: bool) -> None:
    """Raises the error for a model that gives vectors: a CrossEncoder (UnsupportedModelError), or with a template."""
    if is_template_given:
        raise _no_scores(architecture)
    if settings.is_cross_encoder:
        raise UnsupportedModelError(
            f"{MODEL_SETTINGS}: model_type is CrossEncoder, but {architecture} with these modules gives vectors; "
            "supported are a class ...ForSequenceClassification, LogitScore after a causal language model, and a last "
            "Dense with module_output_name scores"
        )


def _check_default_prompt(settings: ModelSettings, others: frozenset[str]) -> None:
    """Raises UnsupportedModelError for a default prompt of a route that is not served (`others`)."""
    name = settings.default_prompt_name
    if name in others and settings.served_prompts.get(name):
        raise UnsupportedModelError(
            f"{MODEL_SETTINGS}: default_prompt_name {name!r} is not supported: it is the prompt of another route of "
            "the Router than the one that is served"
        )


def _no_scores(architecture: str) -> ConfigError:
    """Returns the error for a rerank_template with a model that gives vectors."""
    if architecture.endswith("ForCausalLM"):
        return ConfigError(
            f"rerank_template does not say which tokens of this {architecture} are the answers no and yes; give it as "
            f"JSON: {EXAMPLE}"
        )
    return ConfigError(f"rerank_template is for rerankers, and {architecture} gives vectors")


def _pooled_by(name: str, modules: Sequence[Module], architecture: str) -> list[Module]:
    """Returns the modules with the pooling `name`; a classifier has no Pooling, so its modules are unchanged.

    Raises ConfigError if the model cannot have this pooling.
    """
    if name == SPLADE:
        if not architecture.endswith("ForMaskedLM"):
            raise ConfigError(f"pooling splade is for a class ...ForMaskedLM; this model is a {architecture}")
        return [next((module for module in modules if isinstance(module, Splade)), Splade())]
    mode = PoolingMode.named(name)
    first, *rest = modules
    if any(isinstance(module, Classifier) for module in modules):
        return [first, *rest]
    if not isinstance(first, Pooling | Splade):
        raise ConfigError(f"pooling {name} is for models with one vector per text; this one has one per token")
    includes_prompt = isinstance(first, Splade) or first.include_prompt
    if not includes_prompt and mode.by_position:
        raise ConfigError(f"pooling {name} cannot leave out the prompt, but the model's include_prompt is false")
    return [Pooling((mode,), includes_prompt), *rest]


def save_spec(spec: ModelSpec, path: Path) -> None:
    """Writes the spec as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2))


def load_spec(path: Path) -> ModelSpec:
    """Returns the spec that `save_spec` wrote, also that of an earlier version of BEI."""
    content = path.read_bytes()
    spec = msgspec.json.decode(content, type=ModelSpec)
    if spec.template is None and msgspec.json.decode(content, type=_Earlier).reads_messages:
        fault = "an earlier version of BEI built the engine, without the model's chat template; build it again"
        return msgspec.structs.replace(spec, template_fault=fault)
    return spec


class _Earlier(msgspec.Struct):
    """A field of earlier specs: whether the model needs a template, as sentence-transformers uses its chat template."""

    reads_messages: bool = False
