"""The description of a served model that routes use to turn a request into a task and the model's rows into a reply."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bei_core.config.settings import Settings
from bei_core.engines.open import Opened
from bei_core.errors import ConfigError, ValidationError, WrongTaskError
from bei_core.models.kind import Kind
from bei_core.models.modules import BgeM3, Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec
from bei_core.tasks import EmbedAll, EmbedSparse, EncodeOptions, Pair, Scoring, Similarity, Text
from bei_core.text.ner import Vocabulary
from bei_core.text.templates import RerankTemplate, chosen_template

log = logging.getLogger(__name__)

# The most characters of a query times the number of documents: a query of 31,000 characters for 1,024 documents.
MAX_REPEATED_CHARS = 32_000_000

_BYTES_PER_NUMBER = 12  # the bytes of a number in JSON


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The abilities of a model, and the limits and defaults of its requests. Constant while it is served."""

    name: str
    kind: Kind
    # The kinds that it can serve as: its own, RERANKER if it has a rerank template, and SPARSE if it is a bge-m3.
    roles: frozenset[Kind]
    labels: Sequence[str]  # the label of each column of its scores; empty if it returns vectors
    scoring: Scoring
    template: RerankTemplate | None  # combines a query and a document into one text
    prompts: Mapping[str, str]
    similarity: Similarity  # the function that compares two of its vectors
    normalizes: bool  # whether its vectors have length 1 according to its published configuration
    default_options: EncodeOptions  # the options of a request that sets none
    pooling: str  # how its tokens' vectors become one vector, in TEI's names: `mean`, `cls`; `none` if they do not
    is_plain_mean: bool  # whether its vector is the mean of its tokens' vectors, with nothing after it but Normalize
    row_width: int  # D, numbers per input; 0 if it returns only rows per token
    token_width: int  # E, numbers per token; 0 if it returns no rows per token
    compute_type: str  # device and precision, such as `cpu+bf16`
    max_inputs: int  # the most inputs of one request
    max_reply_bytes: int
    vocabulary: Vocabulary
    bge_m3: BgeM3 | None = None  # None for other models, and if the engine does not compute its layers

    @property
    def rank_scoring(self) -> Scoring:
        """The scoring of a pair's one logit, which for the labels "no" and "yes" is the difference of their logits."""
        return self.scoring if len(self.labels) == 1 else "sigmoid"

    def prompt(self, name: str) -> str:
        """Returns the text of a prompt by its name. Raises ValidationError for an unknown name."""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            raise ValidationError(f"unknown `prompt_name` {name!r}; this model has: {known}", param="prompt_name")
        return self.prompts[name]

    def pairs(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> list[Text]:
        """Returns a reranker's inputs for pairs of a query and a document.

        Raises ValidationError, before it builds any input, if there are too many pairs, if all queries and
        instructions together have more than MAX_REPEATED_CHARS characters, or if the model takes no instruction.
        """
        self.check_num_inputs(len(pairs))
        repeated = sum(len(query) for query, _ in pairs) + len(instruction or "") * len(pairs)
        if repeated > MAX_REPEATED_CHARS:
            raise ValidationError(
                f"the query is read with each of {len(pairs)} documents, which makes {repeated} characters; at most "
                f"{MAX_REPEATED_CHARS} are read: shorten the query, or send fewer documents",
                param="query",
            )
        if instruction and (self.template is None or not self.template.takes_instruction):
            reason = self.template.uninstructed if self.template is not None else ""
            raise ValidationError(
                "`instruction` needs a rerank_template with {instruction}, and this model has none"
                f"{reason and f': {reason}'}",
                param="instruction",
            )
        return [self.pair(query, document, instruction) for query, document in pairs]

    def check_num_token_rows(self, num_tokens: int) -> None:
        """Raises ValidationError if a reply with one row for each of `num_tokens` tokens would be too large."""
        num_bytes = num_tokens * self.token_width * _BYTES_PER_NUMBER
        if num_bytes > self.max_reply_bytes:
            raise ValidationError(
                f"the reply would have about {num_bytes} bytes, {self.token_width} numbers for each of {num_tokens} "
                f"tokens; at most max_reply_bytes = {self.max_reply_bytes} are sent: send fewer or shorter texts",
                param="inputs",
            )

    def pair(self, query: str, document: str, instruction: str | None = None) -> Text:
        """Returns a reranker's input for a query and a document: one text if the model has a template, else a pair."""
        return Pair(query, document) if self.template is None else self.template.fill(query, document, instruction)

    def embed_all(self, inputs: Sequence[Text], options: EncodeOptions) -> EmbedAll:
        """Returns the task to compute the vectors of tokens. Raises WrongTaskError if the engine does not give them."""
        if not self.token_width:
            raise WrongTaskError(f"{self.name} gives no vectors of tokens")
        return EmbedAll(inputs, options, num_skipped=0 if self.bge_m3 is None else 1)

    def embed_sparse(self, inputs: Sequence[Text], options: EncodeOptions) -> EmbedSparse:
        """Returns the task to compute the weights of terms."""
        return EmbedSparse(inputs, options, () if self.bge_m3 is None else self.bge_m3.unweighted_ids)

    def check_kind(self, kinds: Sequence[Kind]) -> None:
        """Raises WrongTaskError if the model can serve as none of `kinds`. Empty `kinds` allow any model."""
        if kinds and self.roles.isdisjoint(kinds):
            raise WrongTaskError(
                f"{self.name} is a model of kind {self.kind}; this needs one of kind {' or '.join(kinds)}"
            )

    def check_num_inputs(self, count: int) -> None:
        """Raises ValidationError if `count` is more inputs than one request may have."""
        if count > self.max_inputs:
            raise ValidationError(f"batch size {count} > maximum allowed batch size {self.max_inputs}", param="inputs")


def describe(opened: Opened, settings: Settings, vocabulary: Vocabulary) -> ServedModel:
    """Returns the description of an opened model. Raises ConfigError if a default prompt or template is not valid."""
    spec, engine = opened.spec, opened.engine.info
    kind, classifier = spec.kind, spec.classifier
    bge_m3 = spec.bge_m3 if engine.weighs_terms else None
    template = chosen_template(settings.rerank_template, spec.template, spec.template_fault)
    prompt = f", rerank template: {template.name if template else 'none'}" if template or kind is Kind.RERANKER else ""
    name = settings.served_model_name or opened.manifest.source
    log.info("%s is a model of kind %s (%s)%s", name, kind.value, spec.architecture, prompt)
    labels = classifier.labels if classifier else ()
    ranks = template is not None and len(labels) == 2  # "no" and "yes"
    return ServedModel(
        name=name,
        kind=kind,
        roles=frozenset({kind, *([Kind.RERANKER] if ranks else ()), *([Kind.SPARSE] if bge_m3 else ())}),
        labels=labels,
        scoring=classifier.scoring if classifier else "none",
        template=template,
        prompts=spec.prompts,
        similarity=spec.similarity,
        normalizes=spec.normalize,
        default_options=EncodeOptions(
            truncate=settings.auto_truncate, prompt=_default_prompt(spec, settings), pool_prompt=spec.pools_prompt
        ),
        pooling=_pooling(spec),
        is_plain_mean=[getattr(module, "modes", None) for module in spec.modules] == [(PoolingMode.MEAN,)],
        row_width=engine.row_width,
        token_width=engine.token_width,
        compute_type=engine.compute_type,
        max_inputs=settings.max_client_batch_size,
        max_reply_bytes=settings.max_reply_bytes,
        vocabulary=vocabulary,
        bge_m3=bge_m3,
    )


def _pooling(spec: ModelSpec) -> str:
    """Returns TEI's names of the pooling modes, joined by "+"; "none" if there are none."""
    modes = [mode.tei for module in spec.modules if isinstance(module, Pooling) for mode in module.modes]
    return "+".join(modes) or "none"


def _default_prompt(spec: ModelSpec, settings: Settings) -> str | None:
    """Returns the text to put before each input if a request names no prompt; None for no text.

    Raises ConfigError for an unknown prompt name.
    """
    if settings.default_prompt is not None:
        return settings.default_prompt
    name = settings.default_prompt_name or spec.default_prompt_name
    if name is None:
        return None
    if settings.default_prompt_name and name not in spec.prompts:
        known = ", ".join(sorted(spec.prompts)) or "none"
        raise ConfigError(f"default_prompt_name {name!r} is not a prompt of the model; it has: {known}")
    return spec.prompts.get(name)
