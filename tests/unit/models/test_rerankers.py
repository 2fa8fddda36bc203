"""Rerankers in the files of sentence-transformers: their chat template, default prompt, activation and modules."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import is_small, local_digest
from bei_core.config.settings import Settings
from bei_core.engines.build import plan_model
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.errors import ConfigError, UnsupportedModelError, ValidationError
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.serving.served_model import ServedModel, describe
from bei_core.text import sandbox
from bei_core.text.templates import RerankTemplate, named_template
from tests.fakes import FakeEngine
from tests.golden.chat_templates import BY_ROLE
from tests.golden.sentence import PLAIN, RERANKER, modules
from tests.unit.models.test_spec import CAUSAL

MODEL, BASE = "config_sentence_transformers.json", "sentence_transformers.base.modules"
LOGITS = {"method": "forward", "method_output_name": "logits"}
CHAT: dict[str, Any] = {  # as CrossEncoder of sentence-transformers 5.4 writes a causal language model
    **CAUSAL,
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_LogitScore",
            "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
        },
    ],
    "1_LogitScore/config.json": {"true_token_id": 5, "false_token_id": 3, "module_input_name": "causal_logits"},
    "sentence_bert_config.json": {
        "transformer_task": "text-generation",
        "modality_config": {"text": LOGITS, "message": {**LOGITS, "format": "flat"}},
        "module_output_name": "causal_logits",
    },
    MODEL: {
        "model_type": "CrossEncoder",
        "prompts": {},
        "default_prompt_name": None,
        "activation_fn": "torch.nn.modules.linear.Identity",
    },
}
PROMPTED = {**CHAT[MODEL], "prompts": {"query": "Find code"}, "default_prompt_name": "query"}


def written(folder: Path, files: dict[str, Any]) -> Checkpoint:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Checkpoint(folder, str(folder), "")


def settings_of(**given: object) -> Settings:
    return Settings.load({"model_id": "any", **given}, {})


def served(spec: ModelSpec, **given: object) -> ServedModel:
    manifest = Manifest(source="any", revision="r", artifact="0" * 32, engine="fake", precision="f32")
    opened = Opened(FakeEngine(), spec, Path("tokenizer.json"), manifest)
    return describe(opened, settings_of(**given), lambda: [])  # type: ignore[arg-type]


UNFIT = "{{ messages[0].content | upper }}{{ messages[1].content }}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, r"the model reads a query and a document in a chat template \(modality_config\.message\), and has none"),
        (UNFIT, r"chat_template\.jinja: the chat template .* of which it asks for upper"),
    ],
)
def test_a_reranker_whose_chat_template_cannot_be_used_needs_a_rerank_template(
    tmp_path: Path, template: str | None, reason: str
) -> None:
    checkpoint = written(tmp_path / "ours", {**CHAT, **({"chat_template.jinja": template} if template else {})})
    expected = rf"^{reason}; set rerank_template .*, or to none for the plain pair$"
    with pytest.raises(ConfigError, match=expected):
        plan_model([], settings_of(), tmp_path, checkpoint)
    with pytest.raises(ConfigError, match=expected):  # built with the setting `none`, and served without it
        served(read_spec(checkpoint))
    assert served(read_spec(checkpoint), rerank_template="none").template is None


def test_a_chat_template_is_used_before_that_of_a_known_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = {**CHAT, "chat_template.jinja": BY_ROLE, MODEL: PROMPTED}
    spec = read_spec(written(tmp_path / "Qwen3-Reranker-0.6B", files))
    model = served(spec)
    assert model.template is not None
    assert "Task: Find code\nQuery: q\nDocument: d" in model.template.fill("q", "d").text
    assert caplog.messages == ["any is a model of kind reranker (Qwen3ForCausalLM), rerank template: chat template"]
    assert served(spec, rerank_template="qwen3-reranker").template == named_template("qwen3-reranker")
    assert served(spec, rerank_template="none").template is None


def test_a_chat_template_is_fetched_and_part_of_the_digest(tmp_path: Path) -> None:
    assert is_small("chat_template.jinja")
    assert is_small("0_Transformer/chat_template.jinja")
    digests = set()
    for text in (BY_ROLE, UNFIT):
        written(tmp_path, {"config.json": {}, "chat_template.jinja": text})
        digests.add(local_digest(tmp_path))
    assert len(digests) == 2


def test_an_unfit_chat_template_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path / "Qwen3-Reranker-0.6B", {**CHAT, "chat_template.jinja": UNFIT}))
    with pytest.raises(ConfigError, match="asks for upper"):
        served(spec)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"modality_config": {"text": LOGITS, "message": LOGITS}}, "format must be flat or structured; it is None"),
        ({"modality_config": {"text": LOGITS, "message": {**LOGITS, "format": "auto"}}}, "structured; it is 'auto'"),
        (
            {"modality_config": {"text": LOGITS, "message": {**LOGITS, "method": "generate"}}},
            "modality_config.message must have the method forward",
        ),
        ({"processing_kwargs": {"chat_template": {"tools": []}}}, "processing_kwargs.chat_template.tools is not supp"),
        ({"processing_kwargs": {"chat_template": {"restore_suffix": False}}}, "chat_template.restore_suffix is not"),
    ],
)
def test_settings_of_a_chat_template_that_are_not_supported_need_a_rerank_template(
    tmp_path: Path, files: dict[str, Any], said: str
) -> None:
    settings = {**CHAT["sentence_bert_config.json"], **files}
    checkpoint = written(tmp_path, {**CHAT, "sentence_bert_config.json": settings, "chat_template.jinja": BY_ROLE})
    with pytest.raises(ConfigError, match=rf"^sentence_bert_config\.json: .*{re.escape(said)}.*; set rerank_template"):
        served(read_spec(checkpoint))
    setting = "{query}: {document}"
    model = served(read_spec(checkpoint, template=named_template(setting)), rerank_template=setting)
    assert model.template is not None


def test_the_reason_of_a_chat_template_is_not_hidden_by_a_default_prompt(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path / "ours", {**CHAT, "chat_template.jinja": UNFIT, MODEL: PROMPTED}))
    with pytest.raises(ConfigError, match="asks for upper"):
        served(spec)


def test_a_known_name_is_used_where_the_process_of_the_template_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAM", "import no_such_module")
    files = {**CHAT, "chat_template.jinja": BY_ROLE}
    assert served(read_spec(written(tmp_path / "Qwen3-Reranker-0.6B", files))).template == named_template(
        "qwen3-reranker"
    )
    assert "No module named 'no_such_module'; the template of the model's name is used, qwen3-reranker" in caplog.text
    with pytest.raises(ConfigError, match="no_such_module"):
        served(read_spec(written(tmp_path / "ours", files)))


def test_an_instruction_that_the_chat_template_does_not_take_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = BY_ROLE.replace("{{ task }}", "{{ task | trim }}")
    model = served(read_spec(written(tmp_path / "ours", {**CHAT, "chat_template.jinja": text})))
    with pytest.raises(ValidationError, match="this model has none: with an instruction, the chat template changes"):
        model.pairs([("q", "d")], "Find")


@pytest.mark.parametrize(
    ("architecture", "said"), [("BertForSequenceClassification", "gives 2"), ("BertModel", "gives v")]
)
def test_a_chat_template_around_texts_that_are_no_pairs_is_refused(
    tmp_path: Path, architecture: str, said: str
) -> None:
    """A classifier of several labels and an embedding model read texts in the chat template on other routes too."""
    config = {**RERANKER, "architectures": [architecture], "id2label": {"0": "a", "1": "b"}}
    settings = {
        "transformer_task": "sequence-classification",
        "modality_config": CHAT["sentence_bert_config.json"]["modality_config"],
    }
    files = {"config.json": config, "sentence_bert_config.json": settings, "chat_template.jinja": BY_ROLE}
    files |= {name: CHAT[name] for name in ("tokenizer.json",)}
    with pytest.raises(UnsupportedModelError, match=rf"modality_config\.message .*{said}"):
        read_spec(written(tmp_path, files))


@pytest.mark.parametrize(
    ("setting", "name"), [("none", None), ("{query}: {document}", "custom"), ("qwen3-reranker", "qwen3-reranker")]
)
def test_a_rerank_template_is_used_in_place_of_a_chat_template(
    tmp_path: Path, setting: str, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = served(read_spec(written(tmp_path / "ours", CHAT)), rerank_template=setting)
    assert (model.template and model.template.name) == name
    assert caplog.messages == [f"any is a model of kind reranker (Qwen3ForCausalLM), rerank template: {name or 'none'}"]


def test_the_log_says_where_a_causal_language_model_gives_vectors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    served(read_spec(written(tmp_path / "reranker", CAUSAL)))
    assert caplog.messages == ["any is a model of kind embedding (Qwen3ForCausalLM)"]


def test_a_chat_template_that_is_missing_is_replaced_by_that_of_a_known_name(tmp_path: Path) -> None:
    model = served(read_spec(written(tmp_path / "Qwen3-Reranker-0.6B", CHAT)))
    assert model.template == named_template("qwen3-reranker")


@pytest.mark.parametrize(
    ("architecture", "labels", "name"),
    [
        ("LlamaBidirectionalForSequenceClassification", 1, "llama-nemotron-rerank"),
        ("LlamaBidirectionalForSequenceClassification", 3, None),
        ("LlamaForSequenceClassification", 1, None),
    ],
)
def test_the_template_of_nvidias_rerankers_is_found_by_their_class(
    tmp_path: Path, architecture: str, labels: int, name: str | None
) -> None:
    config = {
        **RERANKER,
        "model_type": None,
        "architectures": [architecture],
        "id2label": {str(at): "a" for at in range(labels)},
    }
    template = read_spec(written(tmp_path / "model", {"config.json": config})).template
    assert (template and template.name) == name


@pytest.mark.parametrize("setting", [None, "qwen3-reranker"])
def test_the_default_prompt_of_a_cross_encoder_is_the_instruction(tmp_path: Path, setting: str | None) -> None:
    spec = read_spec(written(tmp_path / "Qwen3-Reranker-0.6B", {**CHAT, MODEL: PROMPTED}))
    model = served(spec, **({"rerank_template": setting} if setting else {}))
    assert model.template is not None
    assert "<Instruct>: Find code\n" in model.template.fill("q", "d").text
    assert model.default_options.prompt is None  # it is not also put before the text


def test_the_instruction_of_a_custom_template_is_kept(tmp_path: Path) -> None:
    checkpoint, text = written(tmp_path, {**CHAT, MODEL: PROMPTED}), "{instruction}|{query}|{document}"
    for setting, used in (
        (text, "Find code"),
        (json.dumps({"template": text, "instruction": "Find prose"}), "Find prose"),
    ):
        spec = read_spec(checkpoint, template=named_template(setting))
        for template in (spec.template, served(spec, rerank_template=setting).template):
            assert template is not None
            assert template.fill("q", "d").text == f"{used}|q|d"


@pytest.mark.parametrize("template", [None, RerankTemplate("custom", "{query} {document}")])
def test_a_default_prompt_without_a_place_is_refused(tmp_path: Path, template: RerankTemplate | None) -> None:
    files = {"config.json": RERANKER, MODEL: PROMPTED}
    with pytest.raises(UnsupportedModelError, match=rf"{MODEL}: default_prompt_name .*\{{instruction\}}"):
        read_spec(written(tmp_path, files), template=template)


def test_a_cross_encoder_that_gives_vectors_is_refused(tmp_path: Path) -> None:
    dense = {"in_features": 32, "out_features": 1, "activation_function": "torch.nn.modules.linear.Identity"}
    listed = modules("Pooling", "Dense", package=BASE)
    files = {**PLAIN, "modules.json": listed, "2_Dense/config.json": dense, MODEL: CHAT[MODEL]}
    with pytest.raises(UnsupportedModelError, match=rf"{MODEL}: model_type is CrossEncoder, but BertModel .* vectors"):
        read_spec(written(tmp_path, files))


@pytest.mark.parametrize(
    ("config", "model", "scoring"),
    [
        ({}, {}, "none"),  # transformers' pipeline gives the logit
        ({"sentence_transformers": {"version": "4.1.0"}}, {}, "sigmoid"),
        ({}, {"model_type": "CrossEncoder"}, "sigmoid"),
        ({}, {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}, "none"),
    ],
)
def test_a_regression_has_a_sigmoid_where_cross_encoder_wrote_the_folder(
    tmp_path: Path, config: dict[str, Any], model: dict[str, Any], scoring: str
) -> None:
    files = {"config.json": {**RERANKER, "problem_type": "regression", **config}, MODEL: model}
    classifier = read_spec(written(tmp_path, files)).classifier
    assert classifier is not None
    assert classifier.scoring == scoring
