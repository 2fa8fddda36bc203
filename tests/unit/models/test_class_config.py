"""What the classes of transformers assume beside config.json, and what is refused because other code computes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import is_small
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.class_config import as_class_reads
from bei_core.models.families import family_of
from bei_core.models.heads import norm_eps
from bei_core.models.modules import Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.rope import frequencies_of
from bei_core.models.sizes import FULL, SLIDING, Sizes
from bei_core.models.spec import ModelSpec, read_spec
from tests.golden.sentence import PLAIN

CONFIG: dict[str, Any] = {"architectures": ["BertModel"], "vocab_size": 10, "max_position_embeddings": 512}
GRITLM = {"AutoModel": "modeling_gritlm7b.MistralModel", "AutoModelForCausalLM": "modeling_gritlm7b.MistralForCausalLM"}
YES_NO: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.LogitScore"},
    ],
    "sentence_bert_config.json": {"transformer_task": "text-generation"},
    "1_LogitScore/config.json": {"true_token_id": 2, "false_token_id": 3},
}


def spec_of(folder: Path, files: dict[str, Any], **config: Any) -> ModelSpec:  # noqa: ANN401
    """The spec of a folder with these files."""
    for name, content in {"config.json": {**CONFIG, **config}, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return read_spec(Checkpoint(folder, str(folder), ""))


def test_a_modernbert_whose_config_leaves_out_defaults_has_those_of_its_class(tmp_path: Path) -> None:
    config = spec_of(tmp_path, {}, architectures=["ModernBertForMaskedLM"]).config
    assert (config["global_rope_theta"], config["local_rope_theta"]) == (160_000.0, 10_000.0)
    assert norm_eps(config) == 1e-5


@pytest.mark.parametrize("architecture", ["MT5EncoderModel", "MT5ForConditionalGeneration"])
def test_mt5_has_gated_mlps_where_config_json_does_not_say_it(architecture: str) -> None:
    sizes = {name: sizes_of(as_class_reads({"architectures": [name]})) for name in (architecture, "T5EncoderModel")}
    assert (sizes[architecture].activation, sizes[architecture].is_gated) == ("gelu_new", True)
    assert (sizes["T5EncoderModel"].activation, sizes["T5EncoderModel"].is_gated) == ("relu", False)


@pytest.mark.parametrize(
    "architecture", ["BertModel", "XLMRobertaForSequenceClassification", "MPNetModel", "ElectraModel"]
)
def test_a_config_without_sizes_and_activation_has_those_of_its_class(architecture: str, tmp_path: Path) -> None:
    """Each class of BERT-like encoders has other sizes; only old files leave them out."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    sizes = sizes_of(read_spec(Checkpoint(tmp_path, "", "")).config)
    expected = (
        (256, 1024, 30522)
        if architecture == "ElectraModel"
        else (768, 3072, 30527 if "MPNet" in architecture else 30522)
    )
    assert (sizes.hidden, sizes.intermediate_size, sizes.vocab_size) == expected
    assert (sizes.activation, sizes.num_types, sizes.num_positions) == (
        "gelu",
        0 if "MPNet" in architecture else 2,
        512,
    )


def test_contriever_is_a_bert_model_that_pools_the_mean(tmp_path: Path) -> None:
    """facebook/contriever has no modules.json, and its architectures names a class of its authors' code."""
    spec = spec_of(tmp_path, {}, architectures=["Contriever"], model_type="bert")
    assert (family_of(spec.architecture).name, spec.modules) == ("bert", (Pooling((PoolingMode.MEAN,)),))


BERT, QWEN, GEMMA, LLAMA = "BertModel", "Qwen2Model", "Gemma3TextModel", "LlamaModel"
NOMIC = {"n_embd": 8, "n_head": 2, "n_inner": 16, "n_layer": 2}


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        (BERT, {"rope_scaling": "none", "rope_theta": 0, "rope_parameters": 1}),
        (BERT, {"sliding_window": "x", "layer_types": 1, "local_attention": {}, "problem_type": []}),
        (LLAMA, {"rope_scaling": False, "rope_parameters": None}),
        (LLAMA, {"sliding_window": "x", "sliding_window_pattern": "LLLG", "max_window_layers": "x"}),
        (LLAMA, {"layer_norm_eps": "x", "query_pre_attn_scalar": "x", "attn_logit_softcapping": [1]}),
        (QWEN, {"sliding_window": 2**31, "max_window_layers": None, "use_sliding_window": True}),
        (QWEN, {"sliding_window_pattern": "LLLG", "max_window_layers": "x"}),
        (GEMMA, {"sliding_window": 2**40}),
        ("ModernBertModel", {"local_attention": "x", "local_rope_theta": -1, "global_attn_every_n_layers": 1}),
        ("NomicBertModel", {"local_attention": "x", "global_attn_every_n_layers": "x", **NOMIC}),
    ],
)
def test_a_value_that_the_class_does_not_read_may_be_anything(architecture: str, values: dict[str, Any]) -> None:
    config = as_class_reads({"architectures": [architecture], **values, "vocab_size": 9})
    sizes_of(config)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        (BERT, {"layer_norm_eps": "x"}, "layer_norm_eps 'x' is not a number"),
        (LLAMA, {"rope_scaling": "linear"}, "rope_scaling 'linear' is not an object"),
        (LLAMA, {"rope_theta": 0}, "the base of rotary positions must be a number above 1; it is 0"),
        (
            "ModernBertModel",
            {"local_rope_theta": -1},
            "the base of rotary positions must be a number above 1; it is -1",
        ),
        (LLAMA, {"layer_types": 5}, "layer_types 5 is not a list"),
        (LLAMA, {"pad_token_id": [1]}, r"pad_token_id \[1\] is not a whole number"),
        (GEMMA, {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern 'LLLG' is not a whole number"),
        (GEMMA, {"sliding_window": "x"}, "sliding_window 'x' is not a whole number"),
        (GEMMA, {"query_pre_attn_scalar": float("nan")}, "query_pre_attn_scalar nan is not a number"),
        (QWEN, {"use_sliding_window": True, "max_window_layers": "x"}, "max_window_layers 'x' is not a whole number"),
        ("ModernBertModel", {"local_attention": "x"}, "local_attention 'x' is not a whole number"),
        ("DebertaV2Model", {"relative_attention": True, "pos_att_type": 5}, "pos_att_type 5 is not a text or a list"),
        (
            "DebertaV2Model",
            {"relative_attention": True, "position_buckets": "x"},
            "position_buckets 'x' is not a whole",
        ),
    ],
)
def test_a_value_that_the_class_reads_is_checked(architecture: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"config.json: {message}"):
        sizes_of(as_class_reads({"architectures": [architecture], **values}))


def sizes_of(config: dict[str, Any]) -> Sizes:
    """Reads the values as an engine does."""
    return family_of(config["architectures"][0]).layout.sizes(config)


def test_distilbert_without_an_activation_has_that_of_its_class() -> None:
    sizes = sizes_of(as_class_reads({"architectures": ["DistilBertModel"]}))
    assert (sizes.hidden, sizes.num_layers, sizes.activation) == (768, 6, "gelu")


def test_a_mistral_without_a_number_of_key_heads_has_8_and_a_llama_as_many_as_query_heads() -> None:
    heads = {
        name: sizes_of(as_class_reads({"architectures": [name]})).heads.num_kv_heads
        for name in ("MistralModel", "LlamaModel", "Gemma2Model")
    }
    assert heads == {"MistralModel": 8, "LlamaModel": 32, "Gemma2Model": 4}


def test_a_value_of_config_json_replaces_a_default_also_if_it_is_null() -> None:
    read = as_class_reads({"architectures": ["ModernBertModel"], "global_rope_theta": 5.0, "local_rope_theta": None})
    assert (read["global_rope_theta"], read["local_rope_theta"]) == (5.0, None)


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({}, 1000.0),
        ({"rotary_emb_base": 10_000}, 10_000.0),
        ({"rope_theta": 500.0}, 500.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}, 300.0),
    ],
)
def test_nomic_bert_has_the_theta_of_its_class_unless_a_key_names_one(config: dict[str, Any], theta: float) -> None:
    frequencies, _ = frequencies_of(as_class_reads({"architectures": ["NomicBertModel"], **config}), 4)
    assert frequencies[1] == pytest.approx(theta**-0.5)


def test_distilbert_ignores_layer_norm_eps_as_its_class_does() -> None:
    assert as_class_reads({"architectures": ["DistilBertModel"], "layer_norm_eps": 1e-5})["layer_norm_eps"] == 1e-12
    assert as_class_reads({"architectures": ["BertModel"], "layer_norm_eps": 1e-5})["layer_norm_eps"] == 1e-5


def test_the_heads_of_modernbert_have_its_norm_eps() -> None:
    assert norm_eps({"norm_eps": 0.1, "layer_norm_eps": 1e-5}) == 0.1
    assert norm_eps({"layer_norm_eps": 1e-5}) == 1e-5


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen2Model", "LlamaModel"])
def test_a_decoder_with_code_of_its_own_is_refused_unless_it_says_in_which_directions_it_attends(
    architecture: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"config\.json: auto_map names modeling_gritlm7b\.MistralModel, "):
        spec_of(tmp_path, {}, architectures=[architecture], auto_map=GRITLM)
    for says in ({"is_causal": False}, {"is_causal": True}, {"use_bidirectional_attention": True}):
        assert spec_of(tmp_path, {}, architectures=[architecture], auto_map=GRITLM, **says).architecture == architecture
    settings = {"sentence_bert_config.json": {"config_kwargs": {"is_causal": False}}}
    assert spec_of(tmp_path, settings, architectures=[architecture], auto_map=GRITLM).config["is_causal"] is False


@pytest.mark.parametrize(
    ("architecture", "auto_map"),
    [
        ("LlamaBidirectionalModel", {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"}),
        ("NewModel", {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}),  # an encoder
        ("EuroBertModel", {"AutoModel": "modeling_eurobert.EuroBertModel"}),
        ("Qwen3Model", {"AutoTokenizer": ["tokenization.Tokenizer", None]}),
        ("Qwen3Model", None),
    ],
)
def test_code_of_a_known_class_or_of_no_class_is_not_refused(architecture: str, auto_map: object) -> None:
    assert as_class_reads({"architectures": [architecture], "auto_map": auto_map})["auto_map"] == auto_map


@pytest.mark.parametrize("architecture", ["Qwen3Model", "LlamaForCausalLM", "Gemma2Model"])
def test_a_direction_that_the_class_ignores_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"use_bidirectional_attention has no effect in .* {architecture} "
    ):
        spec_of(tmp_path, {}, architectures=[architecture], use_bidirectional_attention=True)
    for known in ("Gemma3TextModel", "Qwen3BidirectionalModel", "BertModel"):
        read = as_class_reads({"architectures": [known], "use_bidirectional_attention": True})
        assert read["use_bidirectional_attention"] is True


@pytest.mark.parametrize(
    ("architecture", "config", "window"),
    [
        ("MistralModel", {}, 8),
        ("MistralModel", {"is_causal": False}, 9),
        ("Gemma3TextModel", {}, 8),
        ("Gemma3TextModel", {"is_causal": False}, 9),
        ("Gemma3TextModel", {"use_bidirectional_attention": True}, 5),
        ("Gemma3TextModel", {"use_bidirectional_attention": True, "is_causal": False}, 6),
    ],
)
def test_the_window_of_attention_in_both_directions_is_that_of_transformers(
    architecture: str, config: dict[str, Any], window: int
) -> None:
    """`masking_utils.py`: causal masks have distances below sliding_window, bidirectional ones also this distance."""
    sizes = sizes_of(as_class_reads({"architectures": [architecture], "sliding_window": 8, **config}))
    assert (sizes.window_of(SLIDING), sizes.window_of(FULL)) == (window, None)


def test_a_mistral_with_layer_types_has_the_windows_of_ministral() -> None:
    """AutoConfig of transformers 5 changes its `model_type`."""
    types = (FULL, SLIDING) * 16
    for config, expected in (({"layer_types": [*types]}, types), ({"layer_types": None}, (SLIDING,) * 32)):
        assert sizes_of(as_class_reads({"architectures": ["MistralModel"], **config})).layer_types == expected


def test_gemma_3_ignores_the_soft_cap_that_gemma_2_has() -> None:
    caps = {
        name: sizes_of(as_class_reads({"architectures": [name], "attn_logit_softcapping": 20.0})).soft_cap
        for name in ("Gemma2Model", "Gemma3TextModel")
    }
    assert caps == {"Gemma2Model": 20.0, "Gemma3TextModel": None}


@pytest.mark.parametrize("place", ["", "0_Transformer/"])
def test_an_adapter_beside_whole_weights_is_refused(place: str, tmp_path: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": place.rstrip("/"), "type": "sentence_transformers.models.Transformer"}]
    files = {"modules.json": modules, f"{place}config.json": CONFIG, f"{place}adapter_config.json": {"r": 4}}
    with pytest.raises(UnsupportedModelError, match=rf"^{place}adapter_config\.json: adapters \(PEFT\) are not supp"):
        spec_of(tmp_path, files)
    assert is_small(f"{place}adapter_config.json")


@pytest.mark.parametrize(
    ("architecture", "config", "refused"),
    [
        ("Gemma2ForCausalLM", {}, "30.0 (of Gemma2ForCausalLM)"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": 5}, "5 (of Gemma2ForCausalLM)"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": None}, None),
        ("Qwen3ForCausalLM", {}, None),
    ],
)
def test_a_soft_cap_of_the_logits_of_a_yes_no_reranker_is_refused(
    architecture: str, config: dict[str, Any], refused: str | None, tmp_path: Path
) -> None:
    if refused is None:
        assert spec_of(tmp_path, YES_NO, architectures=[architecture], **config).classifier is not None
        return
    with pytest.raises(UnsupportedModelError) as error:
        spec_of(tmp_path, YES_NO, architectures=[architecture], **config)
    assert str(error.value).startswith(f"config.json: final_logit_softcapping {refused} is not supported")


@pytest.mark.parametrize("setting", [{"causal": True}, {"use_rms_norm": True}, {"rotary_emb_scale_base": 512}])
def test_what_nomic_bert_could_compute_otherwise_is_refused(setting: dict[str, Any]) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    with pytest.raises(UnsupportedModelError, match=next(iter(setting))):
        sizes_of({"architectures": ["NomicBertModel"], **sizes, **setting})


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("BertModel", "roberta"),
        ("RobertaForMaskedLM", "bert"),
        ("LlamaModel", "mistral"),
        ("Gemma2Model", "gemma3_text"),
    ],
)
def test_a_model_type_of_another_family_is_refused(architecture: str, model_type: str) -> None:
    """transformers would load the class of model_type, whatever `architectures` says."""
    with pytest.raises(
        UnsupportedModelError, match=f"model_type is '{model_type}', but architectures is {architecture}"
    ):
        as_class_reads({"architectures": [architecture], "model_type": model_type})


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("XLMRobertaModel", "roberta"),
        ("Gemma3TextModel", "gemma3_text"),
        ("Gemma3ForConditionalGeneration", "gemma3"),
        ("Contriever", "bert"),
        ("DebertaV2Model", "deberta-v2"),
        ("MT5EncoderModel", "mt5"),
        ("LlamaBidirectionalModel", "llama_bidirec"),
        ("LlamaBidirectionalModel", "llama"),  # its code may be removed from the folder
        ("JinaBertForMaskedLM", "bert"),
        ("Qwen3BidirectionalModel", "qwen3"),
        ("GteModel", "new"),
        ("NewModel", "gte"),
        ("ErnieModel", "ernie"),
        ("BertModel", None),
    ],
)
def test_a_model_type_of_the_same_family_or_an_unknown_one_is_not_refused(architecture: str, model_type: str) -> None:
    assert as_class_reads({"architectures": [architecture], "model_type": model_type})["model_type"] == model_type


def test_code_for_the_tokenizer_alone_is_no_reason_for_another_model_type() -> None:
    config = {"architectures": ["BertModel"], "model_type": "roberta", "auto_map": {"AutoTokenizer": "code.Tokenizer"}}
    with pytest.raises(UnsupportedModelError, match="model_type is 'roberta'"):
        as_class_reads(config)


def test_a_null_position_embedding_type_is_absolute() -> None:
    config = as_class_reads({"architectures": ["BertModel"], "position_embedding_type": None})
    assert sizes_of(config).num_positions == 512


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"hidden_size": 32}},
            r"text_config is not supported: Gemma3ForConditionalGeneration holds a text model",
        ),
        (
            {
                "architectures": ["HF_ColBERT"],
                "auto_map": {"AutoModel": "jinaai/xlm-roberta--modeling.XLMRobertaModel"},
            },
            r"HF_ColBERT is supported with the layers of BERT, and auto_map names jinaai/xlm-roberta--modeling",
        ),
    ],
)
def test_a_model_inside_of_another_one_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"config\.json: {message}"):
        as_class_reads(config)


@pytest.mark.parametrize(
    ("model_type", "architecture"), [("bert", "BertModel"), ("xlm-roberta", "XLMRobertaModel"), ("mpnet", "MPNetModel")]
)
def test_a_config_without_architectures_has_the_base_class_where_the_modules_give_vectors(
    tmp_path: Path, model_type: str, architecture: str
) -> None:
    spec = spec_of(tmp_path, {**PLAIN, "config.json": {**CONFIG, "architectures": None, "model_type": model_type}})
    assert spec.architecture == architecture
    (tmp_path / "modules.json").unlink()  # it may be a classifier
    with pytest.raises(CheckpointError, match="no `architectures`"):
        read_spec(Checkpoint(tmp_path, str(tmp_path), ""))
