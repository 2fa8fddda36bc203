"""Malformed files of sentence-transformers, and unsupported values in them: refused with one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, ConfigError, UnsupportedModelError
from bei_core.models.kind import Kind
from bei_core.models.modules import Dense
from bei_core.models.spec import ModelSpec, read_spec
from tests.golden.multi_vector import MULTI_VECTOR, ON_TOKENS
from tests.golden.sentence import FOLDERS, PLAIN, RERANKER, SPLADE_5, TABLE, Folder, modules, static

TRANSFORMER, MODEL = "sentence_bert_config.json", "config_sentence_transformers.json"
FAULTS = (CheckpointError, UnsupportedModelError, ConfigError)


def spec_of(folder: Path, files: dict[str, Any], base: dict[str, Any] = PLAIN) -> ModelSpec:
    for name, content in {**base, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return read_spec(Checkpoint(folder, str(folder), ""))


def written(folder: Path, content: Folder) -> ModelSpec:
    content.write(folder)
    return read_spec(Checkpoint(folder, str(folder), ""))


def of_type(name: str) -> list[dict[str, Any]]:
    """A modules.json whose second module is of a type."""
    return [modules()[0], {"idx": 1, "name": "1", "path": "1_Pooling", "type": name}]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({TRANSFORMER: {"max_seq_length": "128"}}, f"{TRANSFORMER}: max_seq_length: expected `int | null`, got `str`"),
        ({TRANSFORMER: {"max_seq_length": -1}}, f"{TRANSFORMER}: max_seq_length: expected `int` >= 1"),
        ({TRANSFORMER: {"max_seq_length": 0}}, f"{TRANSFORMER}: max_seq_length: expected `int` >= 1"),
        ({TRANSFORMER: {"max_seq_length": float("inf")}}, f"{TRANSFORMER}: max_seq_length: expected `int | null`"),
        ({TRANSFORMER: {"do_lower_case": "yes"}}, f"{TRANSFORMER}: do_lower_case: expected `bool | null`, got `str`"),
        ({TRANSFORMER: []}, f"{TRANSFORMER} is not a JSON object"),
        ({TRANSFORMER: {"transformer_task": "retrieval"}}, f"{TRANSFORMER}: transformer_task 'retrieval' is not supp"),
        ({TRANSFORMER: {"modality_config": 3}}, f"{TRANSFORMER}: modality_config: expected `object | null`"),
        (
            {TRANSFORMER: {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}},
            f"{TRANSFORMER}: modality_config.text must have the method forward and the method_output_",
        ),
        (
            {TRANSFORMER: {"modality_config": {"image": {"method": "get_image_features", "method_output_name": None}}}},
            f"{TRANSFORMER}: modality_config.text must have the method forward",
        ),
        (
            {TRANSFORMER: {"modality_config": {"message": {"method": "forward", "method_output_name": "x"}}}},
            f"{TRANSFORMER}: modality_config.message is supported for rerankers only",
        ),
        ({TRANSFORMER: {"model_args": {"num_labels": 3}}}, f"{TRANSFORMER}: model_args.num_labels is not supported"),
        (
            {TRANSFORMER: {"processor_kwargs": {"add_eos_token": True}}},
            f"{TRANSFORMER}: processor_kwargs.add_eos_token is not supported",
        ),
        (
            {TRANSFORMER: {"tokenizer_args": {"model_max_length": "9"}}},
            f"{TRANSFORMER}: tokenizer_args.model_max_length: expected `int | null`, got `str`",
        ),
        (
            {TRANSFORMER: {"processing_kwargs": {"text": {"max_length": 8}}}},
            f"{TRANSFORMER}: processing_kwargs.text.max_length is not supported",
        ),
        ({MODEL: {"prompts": 3}}, f"{MODEL}: prompts: expected `object | null`, got `int`"),
        ({MODEL: {"prompts": {"query": 3}}}, f"{MODEL}: prompts[...]: expected `str | null`, got `int`"),
        ({MODEL: {"truncate_dim": "64"}}, f"{MODEL}: truncate_dim: expected `int | null`, got `str`"),
        ({MODEL: {"truncate_dim": 0}}, f"{MODEL}: truncate_dim: expected `int` >= 1"),
        (
            {MODEL: {"prompts": {"search": "s: "}, "default_prompt_name": "serach"}},
            f"{MODEL}: default_prompt_name 'serach' is not one of the prompts, which are document, query, search",
        ),
        ({"tokenizer_config.json": {"model_max_length": "x"}}, "tokenizer_config.json: model_max_length: expected `fl"),
        ({"tokenizer_config.json": {"model_max_length": -5}, TRANSFORMER: {}}, "a text may have -5 tokens, by tokeniz"),
        ({"config.json": {**PLAIN["config.json"], "max_position_embeddings": "x"}}, "config.json: max_position_embedd"),
        ({"config.json": {**PLAIN["config.json"], "architectures": "BertModel"}}, "config.json has no `architectures`"),
        ({"config.json": {**RERANKER, "id2label": ["a"]}, "modules.json": modules()}, "config.json: id2label ['a'] "),
        ({"config.json": {**RERANKER, "id2label": {"a": "b"}}, "modules.json": modules()}, "config.json: id2label {"),
        (
            {"config.json": {**RERANKER, "id2label": {}, "num_labels": "2"}, "modules.json": modules()},
            "config.json: num_labels '2' is not a number",
        ),
        ({"modules.json": []}, "modules.json names no module"),
        ({"modules.json": [3]}, "modules.json is not a list of modules"),
        ({"modules.json": [{"path": ""}]}, "modules.json: [0]: object missing required field `type`"),
        ({"modules.json": modules("Pooling")[:1] * 2}, "modules.json: two modules have the same name"),
        (
            {"modules.json": of_type("mine.Pooling")},
            "modules.json: mine.Pooling is not a class of sentence-transformer",
        ),
        (
            {"modules.json": of_type("sentence_transformers.models.CNN")},
            "sentence_transformers.models.CNN is not supported; supported are Transformer, ",
        ),
        (
            {"modules.json": of_type("sentence_transformers.sparse_encoder.models.SparseAutoEncoder")},
            "sentence_transformers.sparse_encoder.models.SparseAutoEncoder is not supported; supported are Transf",
        ),
        (
            {"modules.json": of_type("sentence_transformers.sparse_encoder.models.SpladePooling")},
            "modules.json: SpladePooling needs the task fill-mask, and the model's is feature-extraction",
        ),
        (
            {TRANSFORMER: {"transformer_task": "fill-mask"}},
            "modules.json: Pooling may not follow a transformer for fill-mask",
        ),
        ({"modules.json": modules()}, "modules.json: no module follows the transformer"),
        ({"1_Pooling/config.json": {"pooling_mode": 3}}, "1_Pooling/config.json: pooling_mode: expected `str | array"),
        (
            {"1_Pooling/config.json": {"include_prompt": "no"}},
            "1_Pooling/config.json: include_prompt: expected `bool | null`",
        ),
        (
            {"1_Pooling/config.json": {"pooling_mode_mean_tokens": "false"}},
            "1_Pooling/config.json: pooling_mode_mean_tokens 'false' is not true or false",
        ),
        (
            {"modules.json": modules("Pooling", "Dense"), "2_Dense/config.json": {"bias": "yes"}},
            "2_Dense/config.json: bias: expected `bool`, got `str`",
        ),
        (
            {"modules.json": modules("Pooling", "Dense"), "2_Dense/config.json": {"activation_function": "mine.ReLU"}},
            "2_Dense/config.json: activation 'mine.ReLU' is not supported",
        ),
        (
            {**SPLADE_5, "1_SpladePooling/config.json": {"pooling_strategy": "mean"}},
            "1_SpladePooling/config.json: pooling_strategy: invalid enum value 'mean'",
        ),
        (
            {**SPLADE_5, "1_SpladePooling/config.json": {"activation_function": "gelu"}},
            "1_SpladePooling/config.json: activation_function: invalid enum value 'gelu'",
        ),
        (
            {"modules.json": modules("Pooling", "Normalize"), "2_Normalize/config.json": ON_TOKENS},
            "modules.json: Normalize on token_embeddings is not supported after Pooling",
        ),
        (
            {**MULTI_VECTOR, "2_MultiVectorMask/config.json": {"skiplist_words": [], "keep_only_token_ids": [7]}},
            "2_MultiVectorMask/config.json: keep_only_token_ids is not supported",
        ),
        (
            {**MULTI_VECTOR, MODEL: {**MULTI_VECTOR[MODEL], "default_prompt_name": "query"}},
            f"{MODEL}: default_prompt_name is not supported for PyLate and MultiVectorEncoder",
        ),
        (
            {"modules.json": modules("Pooling", "Dense"), "2_Dense/config.json": {"module_output_name": "other"}},
            "2_Dense/config.json: module_output_name 'other' is not supported",
        ),
    ],
)
def test_a_file_that_cannot_be_served_is_refused_by_name(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(FAULTS) as refused:
        spec_of(tmp_path, files)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_prompts_of_pylate_are_refused_because_its_queries_are_expanded_too(tmp_path: Path) -> None:
    pylate = {
        "prompts": {"query": "", "document": "", "other": "o: "},
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
    }
    assert spec_of(tmp_path, {MODEL: pylate}).prompts == {"other": "o: "}
    with pytest.raises(UnsupportedModelError, match=f"{MODEL}: default_prompt_name is not supported for PyLate"):
        spec_of(tmp_path, {MODEL: {**pylate, "default_prompt_name": "query"}})


def test_a_multi_vector_encoder_gives_the_vectors_of_tokens(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, MULTI_VECTOR)
    assert spec.kind is Kind.LATE_INTERACTION
    assert spec.modules == (Dense("1_Dense", bias=False, activation="identity", per_token=True),)
    assert spec.prompts == {"other": "o: "}


@pytest.mark.parametrize(
    "name",
    [
        "sentence_transformers.models.WordEmbeddings",
        "sentence_transformers.models.BoW",
        "sentence_transformers.models.CLIPModel",
        "sentence_transformers.models.Asym",
        "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
        "custom_st.Transformer",
    ],
)
def test_a_first_module_that_is_no_transformer_is_refused_beside_a_bert(tmp_path: Path, name: str) -> None:
    listed = [{**entry, **({"type": name} if entry["idx"] == 0 else {})} for entry in modules("Pooling")]
    with pytest.raises(
        UnsupportedModelError, match=rf"modules\.json: {name} is not (supported as the first module|a class)"
    ):
        spec_of(tmp_path, {"modules.json": listed})


@pytest.mark.parametrize(
    ("named", "labels", "scoring"),
    [
        ("torch.nn.modules.linear.Identity", 1, "none"),
        ("torch.nn.modules.activation.Sigmoid", 1, "sigmoid"),
        ("torch.nn.modules.activation.Sigmoid", 3, "sigmoid"),
        ("torch.nn.modules.linear.Identity", 3, "softmax"),  # CrossEncoder's default, whatever the model is for
        (None, 1, "sigmoid"),
    ],
)
def test_an_activation_function_is_the_scoring(tmp_path: Path, named: str | None, labels: int, scoring: str) -> None:
    names = {str(label): f"L{label}" for label in range(labels)}
    config = {**RERANKER, "id2label": names, "sentence_transformers": {"activation_fn": named}}
    classifier = spec_of(tmp_path, {"config.json": config}, {}).classifier
    assert classifier is not None
    assert classifier.scoring == scoring


def test_another_activation_function_is_refused(tmp_path: Path) -> None:
    config = {**RERANKER, "sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}
    with pytest.raises(UnsupportedModelError, match=r"config\.json: activation function 'torch\.nn\.modules.*Tanh' is"):
        spec_of(tmp_path, {"config.json": config}, {})


@pytest.mark.parametrize(
    ("named", "similarity"),
    [("dot", "dot"), ("euclidean", "euclidean"), ("manhattan", "manhattan"), (None, "cosine"), ("maxsim", "cosine")],
)
def test_the_similarity_function_is_read(tmp_path: Path, named: str | None, similarity: str) -> None:
    assert spec_of(tmp_path, {MODEL: {"similarity_fn_name": named}}).similarity == similarity


def test_a_table_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"embedding\.weight has shape \(4,\), but must have 2 dimensions"):
        written(tmp_path / "flat", static(modules(first="StaticEmbedding"), {"": {"embedding.weight": (4,)}}))
    with pytest.raises(CheckpointError, match=r"has none of the tensors embedding\.weight, embeddings"):
        written(tmp_path / "none", static(modules(first="StaticEmbedding"), {"": {"weight": (4, 4)}}))


def test_static_embeddings_have_no_settings_of_a_transformer(tmp_path: Path) -> None:
    settings = {"max_seq_length": 5, "do_lower_case": True, "transformer_task": "feature-extraction"}
    spec = written(tmp_path, static(modules(first="StaticEmbedding"), {"": TABLE}, {TRANSFORMER: settings}))
    assert (spec.is_static, spec.do_lower_case, spec.max_seq_len) == (True, False, 1 << 15)


def test_static_embeddings_have_the_length_of_their_tokenizer(tmp_path: Path) -> None:
    folder = static(modules(first="StaticEmbedding"), {"": TABLE})
    assert written(tmp_path, folder).max_seq_len == 1 << 15
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert read_spec(Checkpoint(tmp_path, "", "")).max_seq_len == 7


def test_a_module_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    listed = [{**entry, "path": "../secret"} for entry in modules("Pooling")]
    with pytest.raises(CheckpointError, match=r"is '\.\./secret', which is not inside the model's folder"):
        spec_of(tmp_path, {"modules.json": listed})


def test_a_reranker_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = FOLDERS["cross-encoder-6"]
    config = {**RERANKER, "architectures": ["BertModel"]}
    with pytest.raises(UnsupportedModelError, match=r"modules\.json: no module follows the transformer"):
        written(tmp_path, Folder({**folder.files, "config.json": config}, folder.weights, folder.kind))
