"""Templates of rerankers: the template of each model, and the prompt for a query and a document."""

from __future__ import annotations

import pytest

from bei_core.errors import ConfigError
from bei_core.text.templates import RerankTemplate, find_template, named_template

COMMIT = "6e9e69830b95c52b5fd889b7690dda3329508de3"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", "qwen3-reranker"),
        ("/models/qwen3-reranker-8b/", "qwen3-reranker"),
        ("mixedbread-ai/mxbai-rerank-large-v2", "mxbai-rerank-v2"),
        ("michaelfeil/mxbai-rerank-large-v2-seq", "mxbai-rerank-v2"),
        (f"/root/.cache/huggingface/hub/models--Qwen--Qwen3-Reranker-0.6B/snapshots/{COMMIT}", "qwen3-reranker"),
        (f"/cache/models--michaelfeil--mxbai-rerank-large-v2-seq/snapshots/{COMMIT}/", "mxbai-rerank-v2"),
        (f"/cache/models--BAAI--bge-reranker-v2-m3/snapshots/{COMMIT}", None),
        (f"/qwen3-reranker-tests/snapshots/{COMMIT}", None),
        ("snapshots/mine", None),
        ("nvidia/llama-nemotron-rerank-1b-v2", "llama-nemotron-rerank"),
        ("nvidia/llama-3.2-nv-rerankqa-1b-v2", "llama-nemotron-rerank"),
        ("nvidia/llama-nemotron-embed-1b-v2", None),
        ("mixedbread-ai/mxbai-rerank-large-v1", None),
        ("BAAI/bge-reranker-v2-m3", None),
        ("Qwen/Qwen3-Embedding-0.6B", None),
    ],
)
def test_a_template_is_found_by_the_name_of_the_model(source: str, name: str | None) -> None:
    found = find_template(source)
    assert (found.name if found else None) == name


def test_the_document_has_the_reported_position_in_the_prompt() -> None:
    template = named_template("qwen3-reranker")
    filled = template.fill("a query", "a document")
    assert filled.text[filled.start : filled.stop] == "a document"
    assert "<Query>: a query\n" in filled.text
    assert f"<Instruct>: {template.instruction}\n" in filled.text
    assert "<Instruct>: Find code\n" in template.fill("q", "d", "Find code").text


def test_a_reranker_of_nvidia_reads_one_text_without_an_instruction() -> None:
    template = named_template("llama-nemotron-rerank")
    assert template.fill("how much protein", "46 g a day").text == "question:how much protein \n \n passage:46 g a day"
    assert not template.takes_instruction


@pytest.mark.parametrize("text", ["{document}", "{query}", "{", "}} {0}", "{instruction}"])
def test_braces_in_texts_are_left_alone(text: str) -> None:
    filled = RerankTemplate("own", "{instruction}<{query}|{document}>", instruction="do").fill(text, text)
    assert filled.text == f"do<{text}|{text}>"
    assert filled.text[filled.start : filled.stop] == text


def test_a_template_may_be_given_as_its_text() -> None:
    assert named_template("{query} => {document}").fill("a", "b").text == "a => b"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="neither one of qwen3-reranker, mxbai-rerank-v2, llama-nemotron-rerank, bge-rer"
    ):
        named_template("qwen2")


def test_a_template_may_be_given_as_json_with_its_answers() -> None:
    found = named_template(
        ' {\n "template": "{instruction}: {query} => {document}", "tokens": ["No", "Yes"], "instruction": "do"}'
    )
    assert found.tokens == ("No", "Yes")
    assert found.fill("a", "b").text == "do: a => b"


@pytest.mark.parametrize("text", ['{"query": {query}} {document}', '{"template": "{query} {document}"'])
def test_json_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r'rerank_template: .*write JSON such as \{"template"'):
        named_template(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"tokens": ["no", "yes"]}', "missing required field `template`"),
        ('{"template": "{query}", "tokens": ["no", "yes"]}', "must contain {query} and {document}"),
        ('{"template": "{query} {document}", "token": ["no", "yes"]}', "unknown field `token`"),
        ('{"template": "{query} {document}", "tokens": ["yes"]}', "length 2"),
        ('{"template": "{query} {document}", "tokens": ["yes", "yes"]}', "two different words"),
        ('{"template": "{query} {document}", "tokens": ["", "yes"]}', "two different words"),
        ('{"template": 1}', "Expected `str`"),
    ],
)
def test_json_of_a_wrong_form_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        named_template(text)
