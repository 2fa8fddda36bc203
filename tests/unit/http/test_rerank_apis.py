"""The format of the reply to each rerank body, and the options of each API: effective, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bei_core.engines.batch import Batch
from bei_core.tasks import Rows
from tests.unit.http import scored
from tests.unit.http.scored import RERANKER, expected, serving

QUERY = "what colour"
TEXTS = ["red", "a blue house", "green fields and more", "red"]
WANTED = expected([(QUERY, text) for text in TEXTS], 1, "sigmoid")[:, 0]
ORDER = sorted(range(len(TEXTS)), key=lambda index: (-WANTED[index], index))
BODY: dict[str, Any] = {"query": QUERY, "documents": TEXTS}


async def reply_of(path: str, body: object, status: int = 200) -> Any:  # noqa: ANN401 - JSON
    async with serving(RERANKER) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


@pytest.mark.parametrize(
    ("path", "fields", "name", "documents"),
    [
        ("/rerank", {}, "results", [{"text": TEXTS[index]} for index in ORDER]),
        ("/v1/rerank", {}, "results", [{"text": TEXTS[index]} for index in ORDER]),
        ("/v1/rerank", {"return_documents": False}, "results", None),
        ("/v1/rerank", {"return_documents": "false"}, "results", None),
        ("/v2/rerank", {}, "results", None),
        ("/v2/rerank", {"return_documents": "true"}, "results", [{"text": TEXTS[index]} for index in ORDER]),
        ("/rerank", {"raw_scores": False}, "results", None),
        ("/rerank", {"raw_scores": False, "return_documents": True}, "results", [TEXTS[index] for index in ORDER]),
        ("/infinity/rerank", {"return_documents": True}, "results", [TEXTS[index] for index in ORDER]),
        ("/v1/rerank", {"truncation": True}, "data", None),
        ("/v1/rerank", {"top_k": 4, "return_documents": True}, "data", [TEXTS[index] for index in ORDER]),
        ("/voyage/v1/rerank", {"return_documents": True}, "data", [TEXTS[index] for index in ORDER]),
    ],
)
async def test_fields_and_paths_decide_whose_reply_it_is(
    path: str, fields: dict[str, Any], name: str, documents: list[Any] | None
) -> None:
    reply = await reply_of(path, BODY | fields)
    assert [item["index"] for item in reply[name]] == ORDER
    np.testing.assert_allclose([item["relevance_score"] for item in reply[name]], WANTED[ORDER], rtol=1e-6)
    found = [item["document"] for item in reply[name] if "document" in item]
    assert found == (documents or [])
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] > 0


async def test_either_name_asks_for_the_texts() -> None:
    reply = await reply_of("/v2/rerank", BODY | {"return_text": True})
    assert [item["document"]["text"] for item in reply["results"]] == [TEXTS[index] for index in ORDER]
    found = await reply_of("/rerank", {"query": QUERY, "texts": TEXTS, "return_documents": "true"})
    assert [item["text"] for item in found] == [TEXTS[index] for index in ORDER]
    refused = await reply_of("/rerank", BODY | {"return_text": True, "return_documents": False}, 422)
    assert "`return_text` and `return_documents` contradict each other" in refused["error"]


async def test_coheres_replies_name_their_version() -> None:
    for path, version in (("/rerank", "1"), ("/v1/rerank", "1"), ("/v2/rerank", "2")):
        assert (await reply_of(path, BODY))["meta"]["api_version"] == {"version": version}


async def test_infinitys_and_voyages_objects_name_themselves() -> None:
    assert (await reply_of("/infinity/rerank", BODY))["object"] == "rerank"
    assert (await reply_of("/voyage/v1/rerank", BODY))["object"] == "list"


@pytest.mark.parametrize("fields", [{"top_n": 2}, {"top_k": 2}, {"top_k": 2, "top_n": 0}])
async def test_top_n_gives_the_best_documents(fields: dict[str, int]) -> None:
    reply = await reply_of("/v1/rerank", BODY | fields)
    assert [item["index"] for item in reply.get("results") or reply["data"]] == ORDER[:2]


@pytest.mark.parametrize(
    ("path", "name", "limit"),
    [
        ("/rerank", "texts", "top_n"),
        ("/rerank", "documents", "top_n"),
        ("/v1/rerank", "documents", "top_n"),
        ("/v1/rerank", "documents", "top_k"),
        ("/v2/rerank", "documents", "top_n"),
        ("/v1/reranking", "input", "top_k"),
    ],
)
async def test_documents_are_ranked_by_logits_where_every_sigmoid_is_1(
    path: str, name: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_num_words = {1: 24.6, 2: 28.0, 3: 57.0, 4: 23.9, 5: 44.0, 6: 25.0}

    def logits(batch: Batch, count: int) -> Rows:
        parts = np.split(batch.type_ids, batch.cu_seqlens[1:-1])
        return np.array([[by_num_words.get(int(part.sum()) - 1, 0.0)] for part in parts], np.float32)  # less [SEP]

    monkeypatch.setattr(scored, "logits", logits)
    body = {"query": QUERY, name: ["a" + " a" * (num - 1) for num in by_num_words]}
    for top, best in ((1, [2]), (3, [2, 4, 1]), (6, [2, 4, 1, 5, 0, 3])):
        reply = await reply_of(path, body | {limit: top})
        items = reply if isinstance(reply, list) else reply.get("results") or reply["data"]
        assert [item["index"] for item in items] == best
        assert {item.get("score", item.get("relevance_score")) for item in items} == {1.0}


@pytest.mark.parametrize("fields", [{"top_n": 0}, {"top_k": 0}, {"top_n": None}])
async def test_zero_is_all(fields: dict[str, int | None]) -> None:
    reply = await reply_of("/v1/rerank", BODY | fields)
    assert [item["index"] for item in reply.get("results") or reply["data"]] == ORDER


@pytest.mark.parametrize("name", ["use_activation", "activation", "softmax"])
async def test_without_vllms_activation_scores_are_logits(name: str) -> None:
    reply = await reply_of("/v1/rerank", BODY | {name: False})
    logits = expected([(QUERY, text) for text in TEXTS], 1, "none")[:, 0]
    np.testing.assert_allclose([item["relevance_score"] for item in reply["results"]], logits[ORDER], rtol=1e-6)


async def test_documents_are_texts_in_every_form() -> None:
    parts = [{"type": "text", "text": "green fields"}, {"type": "text", "text": "and more"}]
    documents = ["red", {"text": "a blue house", "id": 5}, {"content": parts}]
    reply = await reply_of("/rerank", {"query": QUERY, "documents": documents})
    texts = {item["index"]: item["document"]["text"] for item in reply["results"]}
    assert texts == {0: "red", 1: "a blue house", 2: "green fields\nand more"}


async def test_rank_fields_names_the_field_with_the_text() -> None:
    documents = [{"body": text, "text": "other"} for text in TEXTS]
    reply = await reply_of("/v1/rerank", BODY | {"documents": documents, "rank_fields": ["body"]})
    assert [item["document"]["text"] for item in reply["results"]] == [TEXTS[index] for index in ORDER]


async def test_truncate_prompt_tokens_limits_the_whole_pair() -> None:
    limit = 8
    whole = await reply_of("/v1/rerank", BODY)
    reply = await reply_of("/v1/rerank", BODY | {"truncate_prompt_tokens": limit})
    assert reply["usage"]["total_tokens"] <= limit * len(TEXTS) < whole["usage"]["total_tokens"]
    same = await reply_of("/v1/rerank", BODY | {"truncate_prompt_tokens": -1})
    assert same["usage"] == whole["usage"]


@pytest.mark.parametrize("fields", [{"truncate_prompt_tokens": -1, "truncate": True}, {"truncation": True}])
async def test_options_that_truncate(fields: dict[str, Any]) -> None:
    await reply_of("/v1/rerank", {"query": QUERY, "documents": ["word " * 100], **fields})


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/rerank", {"top_n": -1}, "top_n"),
        ("/v1/rerank", {"top_k": -1}, "top_k"),
        ("/v1/rerank", {"rank_fields": ["a", "b"]}, "rank_fields"),
        ("/v1/rerank", {"rank_fields": []}, "rank_fields"),
        ("/v1/rerank", {"max_chunks_per_doc": 10}, "max_chunks_per_doc"),
        ("/v1/rerank", {"max_tokens_per_query": 10}, "max_tokens_per_query"),
        ("/v1/rerank", {"padding": "max_length"}, "padding"),
        ("/v1/rerank", {"top_n": 1, "top_k": 2}, "top_k"),
        ("/v1/rerank", {"truncate": False, "truncation": True}, "truncation"),
        ("/v1/rerank", {"chat_template": "{{ a }}"}, "chat_template"),
        ("/v1/rerank", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/rerank", {"return_documents": "maybe"}, "return_documents"),
        ("/v1/rerank", {"documents": [{"image": "a"}]}, "documents"),
        ("/v1/rerank", {"documents": [{"content": [{"type": "image_url", "image_url": {}}]}]}, "documents"),
        ("/v1/rerank", {"documents": ["word " * 100], "truncation": False}, "documents"),
        ("/v1/reranking", {"input": TEXTS, "rewrite_query": True}, "rewrite_query"),
        ("/v1/reranking", {"input": TEXTS, "top_k": -1}, "top_k"),
        ("/v1/ranking", {"query": {"text": "a"}, "passages": [{"image": "a"}]}, "passages"),
        ("/v1/ranking", {"query": "a", "passages": [{"text": "a"}]}, "query"),
    ],
)
async def test_what_would_change_the_result_is_refused_by_name(path: str, fields: dict[str, Any], param: str) -> None:
    error = (await reply_of(path, BODY | fields, 422))["error"]
    assert error["param"] == param


async def test_mixedbreads_reranking() -> None:
    body = {"model": "m", "query": QUERY, "input": TEXTS, "top_k": 2, "return_input": True}
    reply = await reply_of("/v1/reranking", body)
    assert (reply["object"], reply["model"], reply["top_k"], reply["return_input"]) == ("list", "m", 2, True)
    assert [(item["index"], item["input"]) for item in reply["data"]] == [(i, TEXTS[i]) for i in ORDER[:2]]
    np.testing.assert_allclose([item["score"] for item in reply["data"]], WANTED[ORDER[:2]], rtol=1e-6)


async def test_nvidias_ranking_has_logits() -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS], "truncate": "END"}
    reply = await reply_of("/v1/ranking", body)
    logits = expected([(QUERY, text) for text in TEXTS], 1, "none")[:, 0]
    assert [item["index"] for item in reply["rankings"]] == ORDER
    np.testing.assert_allclose([item["logit"] for item in reply["rankings"]], logits[ORDER], rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/reranking", {"query": QUERY, "input": []}, "`input` cannot be empty"),
        ("/v1/reranking", {"query": "", "input": ["a", ""]}, "`input` cannot hold an empty text"),
        ("/v1/ranking", {"query": {"text": QUERY}, "passages": []}, "`passages` cannot be empty"),
        ("/score", {"text_1": "a", "text_2": []}, "`text_2` cannot be empty"),
        ("/score", {"queries": "a", "documents": []}, "`documents` cannot be empty"),
        ("/v1/rerank", {"query": QUERY, "documents": []}, "`documents` cannot be empty"),
        ("/v1/rerank", {"query": QUERY, "texts": []}, "`texts` cannot be empty"),
    ],
)
async def test_nothing_to_rank_is_a_400(path: str, body: object, named: str) -> None:
    assert named in (await reply_of(path, body, 400))["error"]["message"]


@pytest.mark.parametrize("path", ["/rerank", "/", "/elastic/rerank"])
@pytest.mark.parametrize("name", ["texts", "documents"])
async def test_an_error_names_the_field_that_was_given(path: str, name: str) -> None:
    assert (await reply_of(path, {"query": QUERY, name: []}, 400))["error"] == f"`{name}` cannot be empty"
    body: dict[str, Any] = {"query": QUERY, name: ["word " * 100], "truncate": False}
    assert f"`{name}`" in (await reply_of(path, body, 422))["error"]
