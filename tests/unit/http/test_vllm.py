"""vLLM's routes: scores of pairs, what a model gives for each text, labels in its shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bei_core.models.modules import Classifier
from tests.unit.http.scored import CLASSIFIER, RERANKER, expected, serving

TEXTS = ["red", "a blue house", "green fields and more"]


async def reply_of(classifier: Classifier | None, path: str, body: object, status: int = 200) -> Any:  # noqa: ANN401 - JSON
    async with serving(classifier) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


def scores_of(reply: dict[str, Any]) -> list[float]:
    assert [item["index"] for item in reply["data"]] == list(range(len(reply["data"])))
    assert {item["object"] for item in reply["data"]} == {"score"}
    assert reply["usage"]["total_tokens"] > 0
    return [item["score"] for item in reply["data"]]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_one_text_is_scored_with_each_of_several(path: str, names: tuple[str, str]) -> None:
    reply = await reply_of(RERANKER, path, {names[0]: "what colour", names[1]: TEXTS})
    wanted = expected([("what colour", text) for text in TEXTS], 1, "sigmoid")[:, 0]
    np.testing.assert_allclose(scores_of(reply), wanted, rtol=1e-6)


async def test_texts_are_scored_one_by_one() -> None:
    firsts = ["a", "some more words", "b"]
    body = {"text_1": firsts, "text_2": [{"content": [{"type": "text", "text": text}]} for text in TEXTS]}
    reply = await reply_of(RERANKER, "/score", body | {"use_activation": False})
    wanted = expected(list(zip(firsts, TEXTS, strict=True)), 1, "none")[:, 0]
    np.testing.assert_allclose(scores_of(reply), wanted, rtol=1e-6)


@pytest.mark.parametrize("firsts", ["red", ["red", "a blue house", "red"]])
async def test_an_embedding_models_scores_are_cosines(firsts: str | list[str]) -> None:
    async with serving(None) as client:
        rows = np.array((await client.post("/embed", json={"inputs": TEXTS})).json())
        reply = (await client.post("/score", json={"text_1": firsts, "text_2": TEXTS})).json()
    first = rows[[0, 0, 0] if isinstance(firsts, str) else [0, 1, 0]]
    np.testing.assert_allclose(scores_of(reply), (first * rows).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": ["a", "b"], "text_2": TEXTS}, "text_1"),
        ({"text_1": "a"}, "text_1"),
        ({"text_1": "a", "documents": ["b"]}, "text_1"),
        ({"queries": ["a", "b"], "documents": "c"}, "queries"),
        ({"text_1": "a", "text_2": {"image": "b"}}, "text_2"),
    ],
)
async def test_sides_that_do_not_fit_are_refused(body: object, param: str) -> None:
    assert (await reply_of(RERANKER, "/score", body, 422))["error"]["param"] == param


async def test_pooling_gives_vectors() -> None:
    async with serving(None) as client:
        embedded = [
            (await client.post("/embed", json={"inputs": TEXTS, "normalize": normalize})).json()
            for normalize in (True, False)
        ]
        for use_activation, rows in ((None, embedded[0]), (True, embedded[0]), (False, embedded[1])):
            body = {"input": TEXTS, "use_activation": use_activation, "task": "embed"}
            reply = (await client.post("/pooling", json=body)).json()
            assert [item["object"] for item in reply["data"]] == ["pooling"] * len(TEXTS)
            np.testing.assert_allclose([item["data"] for item in reply["data"]], rows, rtol=1e-6)


async def test_pooling_gives_a_classifiers_scores() -> None:
    reply = await reply_of(CLASSIFIER, "/pooling", {"input": TEXTS})
    wanted = expected([(text,) for text in TEXTS], 3, "softmax")
    np.testing.assert_allclose([item["data"] for item in reply["data"]], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"input": "a", "dimensions": 4}, 422, "dimensions"),
        ({"input": "a", "task": "classify"}, 424, "classify"),
        ({"input": "a", "task": "token_embed"}, 424, "vectors of tokens"),
        ({"input": "a", "task": "plugin"}, 422, "task"),
        ({"input": "a", "encoding_format": "bytes"}, 422, "encoding_format"),
        ({"messages": []}, 422, "messages"),
        ({"input": "a", "messages": []}, 422, "messages"),
        ({}, 422, "input"),
    ],
)
async def test_pooling_refuses_by_name(body: object, status: int, named: str) -> None:
    assert named in (await reply_of(None, "/pooling", body, status))["error"]["message"]


@pytest.mark.parametrize(
    ("path", "options", "scoring"),
    [
        ("/vllm/classify", {}, "softmax"),
        ("/classify", {"use_activation": True}, "softmax"),
        ("/classify", {"softmax": False}, "none"),
        ("/classify", {"activation": False, "truncate_prompt_tokens": -1}, "none"),
    ],
)
async def test_classify_has_vllms_shape_for_vllms_fields(path: str, options: dict[str, Any], scoring: Any) -> None:  # noqa: ANN401
    reply = await reply_of(CLASSIFIER, path, {"input": ["red", "blue"], **options})
    wanted = expected([("red",), ("blue",)], 3, scoring)
    assert reply["object"] == "list"
    assert [(item["index"], item["label"], item["num_classes"]) for item in reply["data"]] == [
        (0, "negative", 3),
        (1, "negative", 3),
    ]
    np.testing.assert_allclose([item["probs"] for item in reply["data"]], wanted, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"raw_scores": False}, {"raw_scores": True, "use_activation": True}])
async def test_classify_has_infinitys_shape_otherwise(options: dict[str, Any]) -> None:
    reply = await reply_of(CLASSIFIER, "/classify", {"input": ["red", "blue"], **options})
    assert reply["object"] == "classify"
    assert [[label["label"] for label in item] for item in reply["data"]] == [["negative", "neutral", "positive"]] * 2


BODIES: list[tuple[Classifier | None, str, dict[str, Any]]] = [
    (None, "/v1/embeddings", {"input": TEXTS}),
    (None, "/pooling", {"input": TEXTS}),
    (CLASSIFIER, "/classify", {"input": TEXTS}),
    (RERANKER, "/score", {"text_1": "what colour", "text_2": TEXTS}),
    (RERANKER, "/v1/rerank", {"query": "what colour", "documents": TEXTS}),
]


@pytest.mark.parametrize(("classifier", "path", "body"), BODIES, ids=[path for _, path, _ in BODIES])
@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"truncation_direction": "Right", "truncation_side": "left"}, "truncation_side", "give one of them"),
        ({"truncate": "START", "truncation_side": "right"}, "truncation_side", "give one of them"),
        ({"truncate": "END", "truncation_direction": "Left"}, "truncation_direction", "give one of them"),
        ({"truncate": False, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "give one of them"),
        ({"truncate": "NONE", "truncate_prompt_tokens": -1}, "truncate_prompt_tokens", "give one of them"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be -1 or at least 1"),
        ({"truncation_side": "left", "truncation_direction": "up"}, "truncation_direction", "must be Left or Right"),
        ({"padding": "max_length"}, "padding", "can only be do_not_pad"),
        ({"messages": []}, "messages", "apply the chat template"),
    ],
    ids=str,
)
async def test_every_route_refuses_options_that_contradict_each_other_in_the_same_words(
    classifier: Classifier | None, path: str, body: dict[str, Any], options: dict[str, Any], param: str, message: str
) -> None:
    error = (await reply_of(classifier, path, body | options, 422))["error"]
    assert (error["param"], message in error["message"]) == (param, True), error


@pytest.mark.parametrize(("classifier", "path", "body"), BODIES, ids=[path for _, path, _ in BODIES])
@pytest.mark.parametrize(
    "options",
    [
        {"truncation_direction": "Left", "truncation_side": "left"},
        {"truncate": "START", "truncation_side": "left", "truncation_direction": "LEFT"},
        {"truncate": "END", "truncate_prompt_tokens": 5},
        {"truncate": True, "truncate_prompt_tokens": -1},
        {"truncate": "NONE", "truncation_direction": "Right"},
    ],
    ids=str,
)
async def test_every_route_takes_two_names_of_one_option_that_agree(
    classifier: Classifier | None, path: str, body: dict[str, Any], options: dict[str, Any]
) -> None:
    await reply_of(classifier, path, body | options)


@pytest.mark.parametrize(("classifier", "path", "body"), BODIES[1:], ids=[path for _, path, _ in BODIES[1:]])
async def test_names_of_the_activation_that_differ_are_refused(
    classifier: Classifier | None, path: str, body: dict[str, Any]
) -> None:
    error = (await reply_of(classifier, path, body | {"use_activation": True, "softmax": False}, 422))["error"]
    assert error["param"] == "softmax"


@pytest.mark.parametrize("other", ["queries", "documents", "items", "data_1", "data_2"])
async def test_a_third_side_of_a_score_is_refused(other: str) -> None:
    body = {"text_1": "what colour", "text_2": TEXTS, other: TEXTS}
    error = (await reply_of(RERANKER, "/score", body, 422))["error"]
    assert (error["param"], "excludes `text_1` and `text_2`" in error["message"]) == (other, True)
