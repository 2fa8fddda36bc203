"""Small bodies that cause much work: the work is counted before it is done."""

from __future__ import annotations

import pytest

from bei_core.errors import ValidationError
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.tasks import EncodeOptions, Pair
from bei_core.text.templates import RerankTemplate


def model_of(template: RerankTemplate | None) -> ServedModel:
    facts = dict.fromkeys(ServedModel.__dataclass_fields__)
    given = {"kind": Kind.RERANKER, "template": template, "max_inputs": 1024, "token_width": 384}
    return ServedModel(**{**facts, **given, "default_options": EncodeOptions(), "max_reply_bytes": 1_000_000})  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [None, RerankTemplate("t", "{instruction} {query} {document}")])
def test_a_query_is_counted_with_each_document_before_a_prompt_is_made(template: RerankTemplate | None) -> None:
    model = model_of(template)
    for query, instruction in (("a" * 30_000_000, None), ("a", "b" * 3_000_000), ("a" * 32_000, None)):
        with pytest.raises(ValidationError, match="at most 32000000 are read") as raised:
            model.pairs([(query, "d")] * 1024, instruction)
        assert raised.value.param == "query"
    with pytest.raises(ValidationError, match="1025 > maximum allowed batch size 1024"):
        model.pairs([("a", "d")] * 1025)
    assert len(model.pairs([("a" * 31_000, "d")] * 1024)) == 1024
    if template is None:
        assert model.pairs([("q", "d"), ("q", "e")]) == [Pair("q", "d"), Pair("q", "e")]


def test_a_reply_with_vectors_of_tokens_is_limited_by_its_bytes() -> None:
    model = model_of(None)
    model.check_num_token_rows(200)
    with pytest.raises(ValidationError, match="max_reply_bytes = 1000000"):
        model.check_num_token_rows(1024 * 256)
