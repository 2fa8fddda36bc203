"""Parts that the rerank APIs share: documents, flags, the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.schemas.common import Common, refuse
from bei_core.serving.served_model import ServedModel
from bei_core.tasks import Rank
from bei_core.text.refusals import no_texts

Document: TypeAlias = str | dict[str, Any]  # a text, or an object that contains a text
Flag: TypeAlias = bool | Literal["true", "false"]  # some clients send a string
TopN: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]  # 0 means all; some clients send it


def is_set(flag: Flag | None, default: bool = False) -> bool:
    """Returns the value of a flag; `default` if it is not given."""
    return default if flag is None else flag in (True, "true")


def text_of(document: Document, field: str = "text") -> str:
    """Returns a document's text: itself, its field `field`, or the texts of its `content` joined by line breaks.

    Raises ValidationError for an object without a text, such as an image.
    """
    if isinstance(document, str):
        return document
    if isinstance(text := document.get(field), str):
        return text
    content = document.get("content")
    parts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = [part for part in parts if isinstance(part, str)]
    if texts and len(texts) == len(content or ()):
        return "\n".join(texts)
    given = ", ".join(f"`{name}`" for name in document) or "no fields"
    raise ValidationError(f"a document must be a text or have the text `{field}`, this one has {given}", param="inputs")


def passages_of(documents: Sequence[Document], rank_fields: Sequence[str] | None) -> list[str]:
    """Returns the texts of documents. Raises ValidationError unless `rank_fields` is None or names one field."""
    if rank_fields is not None and len(rank_fields) != 1:
        raise ValidationError("`rank_fields` must name one field", param="rank_fields")
    return [text_of(document, *(rank_fields or ())) for document in documents]


def rank(
    body: Common,
    model: ServedModel,
    pairs: Sequence[tuple[str, str]],
    *,
    top_n: int | None = None,
    raw_scores: bool = False,
    instruction: str | None = None,
) -> Rank:
    """Returns the task to score pairs of a query and a document.

    Raises EmptyInputError if there are none, ValidationError for a prompt, which no pair has.
    """
    if not pairs:
        raise no_texts()
    refuse({"prompt_name": body.prompt_name and "is for single texts; a reranker reads pairs"})
    scoring = "none" if raw_scores else model.rank_scoring
    return Rank(model.pairs(pairs, instruction), body.encode_options(model), scoring, top_n or None)


def ranks(rows: Sequence[tuple[int, float]], texts: Sequence[str] | None) -> list[dict[str, Any]]:
    """Returns the list that text-embeddings-inference replies with; `texts` are None if it has no texts."""
    return [{"index": index, "score": score} | ({"text": texts[index]} if texts else {}) for index, score in rows]


def pairs_of(query: str, documents: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs of the query and each document."""
    return [(query, document) for document in documents]
