"""The routes that answer with scores, over HTTP's application and an engine whose logits are known."""

from __future__ import annotations

import numpy as np
import pytest

from bei_core.models.modules import Classifier
from bei_core.tasks import Similarity
from tests.unit.http.scored import CLASSIFIER, RERANKER, expected, serving

TEXTS = ["red", "a blue house", "green fields and more", "red"]


async def test_rerank_sorts_pairs_by_score() -> None:
    async with serving(RERANKER) as client:
        reply = await client.post("/rerank", json={"query": "what colour", "texts": TEXTS, "return_text": True})
    wanted = expected([("what colour", text) for text in TEXTS], 1, "sigmoid")[:, 0]
    found = reply.json()
    assert [item["index"] for item in found] == sorted(range(4), key=lambda index: (-wanted[index], index))
    assert [item["text"] for item in found] == [TEXTS[item["index"]] for item in found]
    np.testing.assert_allclose([item["score"] for item in found], sorted(wanted)[::-1], rtol=1e-6)
    assert reply.headers["x-compute-type"] == "cpu+f32"


async def test_a_pairs_characters_are_those_of_both_texts() -> None:
    async with serving(RERANKER) as client:
        reply = await client.post("/rerank", json={"query": "four", "texts": ["red", "a"]})
    assert reply.headers["x-compute-characters"] == str(2 * len("four") + len("red") + len("a"))


async def test_a_reply_has_one_id_in_its_body_and_its_headers() -> None:
    async with serving(RERANKER) as client:
        replies = [await client.post("/v1/rerank", json={"query": "q", "documents": ["red"]}) for _ in range(2)]
    ids = [reply.json()["id"] for reply in replies]
    assert ids == [reply.headers["x-request-id"] for reply in replies]
    assert ids[0] != ids[1]


async def test_rerank_has_raw_scores_and_top_n() -> None:
    async with serving(RERANKER) as client:
        body = {"query": "q", "texts": TEXTS, "raw_scores": True, "top_n": 2}
        found = (await client.post("/rerank", json=body)).json()
    wanted = expected([("q", text) for text in TEXTS], 1, "none")[:, 0]
    assert len(found) == 2
    np.testing.assert_allclose([item["score"] for item in found], sorted(wanted)[::-1][:2], rtol=1e-6)


async def test_a_pair_is_empty_only_if_both_texts_are() -> None:
    async with serving(RERANKER) as client:
        reply = await client.post("/rerank", json={"query": "", "texts": ["a b", "c"]})
    assert reply.status_code == 200
    assert len(reply.json()) == 2


async def test_top_n_of_zero_is_all_and_an_empty_document_is_ranked() -> None:
    async with serving(RERANKER) as client:
        reply = await client.post("/rerank", json={"query": "q", "texts": [*TEXTS, ""], "top_n": 0})
    assert reply.status_code == 200
    assert {item["index"] for item in reply.json()} == set(range(len(TEXTS) + 1))


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_get_coheres_shape(path: str) -> None:
    documents = [{"text": TEXTS[0]}, TEXTS[1]]
    async with serving(RERANKER) as client:
        body = {"query": "q", "documents": documents, "model": "m", "return_documents": True}
        reply = (await client.post(path, json=body)).json()
    assert {item["index"] for item in reply["results"]} == {0, 1}
    assert all(item["document"]["text"] == TEXTS[item["index"]] for item in reply["results"])
    assert reply["usage"]["total_tokens"] > 0
    assert reply["id"]
    assert reply["model"] == "m"


@pytest.mark.parametrize(
    ("inputs", "items"),
    [
        ("a text", [("a text",)]),
        (["a text"], [("a text",)]),
        (["a text", "its pair"], [("a text", "its pair")]),
    ],
)
async def test_predict_of_one_input_has_no_list_around_it(inputs: object, items: list[tuple[str, ...]]) -> None:
    async with serving(CLASSIFIER) as client:
        found = (await client.post("/predict", json={"inputs": inputs})).json()
    wanted = expected(items, 3, "softmax")[0]
    assert [item["label"] for item in found] == ["negative", "neutral", "positive"]  # the fake's first is its best
    np.testing.assert_allclose([item["score"] for item in found], wanted, rtol=1e-5)


async def test_predict_of_many_inputs_keeps_their_order() -> None:
    inputs = [["red"], ["blue", "a pair"], ["green fields"]]
    async with serving(CLASSIFIER) as client:
        found = (await client.post("/predict", json={"inputs": inputs, "raw_scores": True})).json()
    wanted = expected([tuple(item) for item in inputs], 3, "none")
    np.testing.assert_allclose([[item["score"] for item in one] for one in found], wanted, rtol=1e-6)


async def test_raw_scores_with_an_activation_are_refused() -> None:
    async with serving(CLASSIFIER) as client:
        for function, status in (("softmax", 422), ("sigmoid", 422), ("none", 200)):
            body = {"inputs": "red", "raw_scores": True, "parameters": {"function_to_apply": function}}
            reply = await client.post("/predict", json=body)
            assert (reply.status_code, "`raw_scores` is true" in reply.text) == (status, status == 422)


@pytest.mark.parametrize("name", ["return_text", "return_documents"])
async def test_rerank_of_texts_returns_them_by_either_name(name: str) -> None:
    async with serving(RERANKER) as client:
        found = (await client.post("/rerank", json={"query": "q", "texts": TEXTS, name: True})).json()
    assert [item["text"] for item in found] == [TEXTS[item["index"]] for item in found]


async def test_classify_has_infinitys_list_object() -> None:
    async with serving(CLASSIFIER) as client:
        reply = (await client.post("/classify", json={"input": ["red", "blue"], "model": "m"})).json()
    assert [len(item) for item in reply["data"]] == [3, 3]
    assert reply["usage"]["prompt_tokens"] > 0


async def test_similarity_is_the_cosine() -> None:
    async with serving(None) as client:
        embedded = (await client.post("/embed", json={"inputs": ["red", "blue", "green"]})).json()
        body = {"inputs": {"source_sentence": "red", "sentences": ["blue", "green"]}}
        found = (await client.post("/similarity", json=body)).json()
    np.testing.assert_allclose(found, np.array(embedded[1:]) @ np.array(embedded[0]), rtol=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
async def test_similarity_is_by_the_function_of_the_model_and_of_its_own_vectors(similarity: Similarity) -> None:
    """As `SentenceTransformer.similarity`, whose distances are negative."""
    async with serving(None, similarity) as client:
        body = {"inputs": ["red", "blue", "green"], "normalize": False}
        row, *others = np.array((await client.post("/embed", json=body)).json())
        asked = {"inputs": {"source_sentence": "red", "sentences": ["blue", "green"]}}
        found = (await client.post("/similarity", json=asked)).json()
    wanted = {
        "dot": np.stack(others) @ row,
        "euclidean": -np.sqrt(((others - row) ** 2).sum(1)),
        "manhattan": -np.abs(others - row).sum(1),
    }
    np.testing.assert_allclose(found, wanted[similarity], rtol=1e-4)


@pytest.mark.parametrize(
    ("classifier", "path", "body"),
    [
        (RERANKER, "/embed", {"inputs": "a"}),
        (CLASSIFIER, "/v1/embeddings", {"input": "a"}),
        (CLASSIFIER, "/rerank", {"query": "q", "texts": ["a"]}),
        (None, "/predict", {"inputs": "a"}),
        (None, "/rerank", {"query": "q", "texts": ["a"]}),
    ],
)
async def test_what_the_model_does_not_do_is_a_424(classifier: Classifier | None, path: str, body: object) -> None:
    async with serving(classifier) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 424
    assert "model of kind" in reply.text


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/rerank", {"query": "q"}, 422, "texts"),
        ("/rerank", {"query": "q", "texts": ["a"], "documents": ["a"]}, 422, "documents"),
        ("/rerank", {"query": "q", "texts": []}, 400, "empty"),
        ("/rerank", {"query": "q", "texts": ["a"], "top_n": -1}, 422, "top_n"),
        ("/rerank", {"query": "", "texts": ["a", ""]}, 400, "empty"),
        ("/rerank", {"texts": ["a"]}, 422, "query"),
        ("/predict", {"inputs": []}, 400, "empty"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, 422, "pair"),
        ("/predict", {"inputs": [5]}, 422, "inputs"),
    ],
)
async def test_what_cannot_be_scored_is_refused(path: str, body: object, status: int, named: str) -> None:
    async with serving(RERANKER) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == status
    assert named in reply.text


@pytest.mark.parametrize("path", ["/", "/invocations"])
@pytest.mark.parametrize(
    ("classifier", "body", "same_as"),
    [
        (None, {"inputs": "red"}, "/embed"),
        (None, {"inputs": {"source_sentence": "red", "sentences": ["blue"]}}, "/similarity"),
        (None, {"input": "red"}, "/v1/embeddings"),
        (CLASSIFIER, {"inputs": "red"}, "/predict"),
        (RERANKER, {"query": "q", "texts": ["red"]}, "/rerank"),
    ],
)
async def test_one_path_takes_every_body(classifier: Classifier | None, body: object, same_as: str, path: str) -> None:
    async with serving(classifier) as client:
        reply = await client.post(path, json=body)
        expected_reply = await client.post(same_as, json=body)
    assert reply.status_code == 200
    assert reply.json() == expected_reply.json()


async def test_a_body_that_fits_no_route_is_refused() -> None:
    async with serving(None) as client:
        assert (await client.post("/", json={"text": "a"})).status_code == 422
        assert (await client.post("/", content=b"{")).status_code == 400
        assert (await client.put("/")).headers["allow"] == "GET, POST"


async def test_info_says_what_kind_of_model_is_served() -> None:
    async with serving(CLASSIFIER) as client:
        found = (await client.get("/info")).json()["model_type"]
    assert found == {
        "classifier": {
            "id2label": {"0": "negative", "1": "neutral", "2": "positive"},
            "label2id": {"negative": 0, "neutral": 1, "positive": 2},
        }
    }
