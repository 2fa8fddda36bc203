"""The spec of a model folder: of every golden folder, and of hand-written ones for the other cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.errors import BeiError, CheckpointError, ConfigError, UnsupportedModelError
from bei_core.models.modules import Dense, Normalize, Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec, load_spec, read_spec, save_spec
from bei_core.text.templates import RerankTemplate
from tests.golden.cases import CASES, Case
from tests.hub import TOKENIZER

EXCLUDED = "bert-prompt-excluded"
SERVED = [case for case in CASES if case.name != EXCLUDED]
BY_NAME = {case.name: case for case in CASES}

CONFIG: dict[str, object] = {
    "architectures": ["BertModel"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 10,
    "max_position_embeddings": 512,
}


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder=folder, source=str(folder), revision="")


def spec_of(folder: Path, files: dict[str, object], *, pooling: str | None = None) -> ModelSpec:
    for name, content in {"config.json": CONFIG, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return read_spec(checkpoint(folder), pooling=pooling)


def pooled(*modes: str) -> Pooling:
    return Pooling(tuple(PoolingMode.named(mode) for mode in modes))


def modules(*kinds: str) -> dict[str, object]:
    """A modules.json of these kinds, after a Transformer."""
    entries = [("Transformer", "")] + [(kind, f"{place}_{kind}") for place, kind in enumerate(kinds, 1)]
    return {
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (kind, path) in enumerate(entries)
        ]
    }


MEAN: dict[str, object] = {"1_Pooling/config.json": {"pooling_mode": "mean"}}

# --- The golden folders


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_length_and_architecture_of_every_golden_are_read(case: Case) -> None:
    spec = read_spec(checkpoint(case.folder))
    assert spec.max_seq_len == case.max_seq_length
    assert spec.architecture in {case.architecture, case.architecture.replace("Model", "ForMaskedLM")}
    assert spec.prompts.get(spec.default_prompt_name or "", "") == case.prompt
    assert spec.normalize == ("Normalize" in str(json_of(case, "modules.json"))[-40:])


def json_of(case: Case, name: str) -> object:
    path = case.folder / name
    return json.loads(path.read_text()) if path.is_file() else None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert-cls-normalize", (pooled("cls"),)),
        ("bert-plain-masked-lm", (pooled("mean"),)),
        ("bert-mean-max-bf16-sharded", (pooled("max", "mean"),)),  # the order of the booleans, not of the name
        ("bert-mean-cls-list", (pooled("mean", "cls"),)),
        ("bert-last-dense-tanh", (pooled("lasttoken"), Dense("2_Dense", bias=True, activation="tanh"))),
        ("bert-modern-dense-gelu", (pooled("mean"), Dense("2_Dense", bias=False, activation="gelu"))),
        ("roberta-sqrt-dense-identity", None),
        (
            "distilbert-normalize-before-dense",
            (pooled("mean"), Normalize(), Dense("3_Dense", bias=True, activation="silu")),
        ),
        (
            "distilbert-every-mode",
            (pooled("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),),
        ),
    ],
)
def test_modules_of_a_golden(name: str, expected: tuple[object, ...] | None) -> None:
    read = read_spec(checkpoint(BY_NAME[name].folder)).modules
    if expected is None:
        expected = (pooled("mean_sqrt_len_tokens"), Dense("2_Dense", bias=True, activation="identity"))
    assert read == expected


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
        ({"architectures": ["Qwen3Model"]}, "mean"),
    ],
)
def test_a_plain_causal_language_model_pools_its_last_token_as_in_sentence_transformers(
    config: dict[str, object], mode: str, tmp_path: Path
) -> None:
    assert spec_of(tmp_path, {"config.json": {**CONFIG, **config}}).modules == (pooled(mode),)


def test_a_prompt_may_be_left_out_of_the_mean() -> None:
    assert not read_spec(checkpoint(BY_NAME[EXCLUDED].folder)).pools_prompt
    assert read_spec(checkpoint(SERVED[0].folder)).pools_prompt


def test_excluding_the_prompt_from_pooling_is_refused_for_position_dependent_modes(tmp_path: Path) -> None:
    pooling = {"1_Pooling/config.json": {"pooling_mode": "weightedmean", "include_prompt": False}}
    with pytest.raises(
        UnsupportedModelError, match=r"1_Pooling/config\.json: include_prompt false is not supported with"
    ):
        spec_of(tmp_path, {**modules("Pooling"), **pooling})


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_a_spec_is_read_back_as_it_was_saved(case: Case, tmp_path: Path) -> None:
    spec = read_spec(checkpoint(case.folder))
    save_spec(spec, tmp_path / "spec.json")
    loaded = load_spec(tmp_path / "spec.json")
    assert loaded == spec
    assert loaded.vocab_size == spec.vocab_size


# --- Modules


def test_a_folder_without_modules_is_mean_pooled(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {})
    assert spec.modules == (pooled("mean"),)
    assert not spec.normalize


def test_modules_come_in_the_order_of_the_file_whatever_their_idx(tmp_path: Path) -> None:
    entries = modules("Pooling", "Dense", "Normalize")
    listed = entries["modules.json"]
    assert isinstance(listed, list)
    dense = {"2_Dense/config.json": {"in_features": 8, "out_features": 4}}
    numbered = [{**entry, "idx": 9 - place} for place, entry in enumerate(listed)]
    spec = spec_of(tmp_path, {"modules.json": numbered, **MEAN, **dense})
    assert spec.modules == (pooled("mean"), Dense("2_Dense", bias=True, activation="tanh"))
    assert spec.normalize


def test_a_normalize_that_is_not_last_stays_in_the_graph(tmp_path: Path) -> None:
    dense: dict[str, object] = {"3_Dense/config.json": {"bias": False, "activation_function": "torch.nn.ReLU"}}
    spec = spec_of(tmp_path, {**modules("Pooling", "Normalize", "Dense"), **MEAN, **dense})
    assert spec.modules == (pooled("mean"), Normalize(), Dense("3_Dense", bias=False, activation="relu"))
    assert not spec.normalize


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        (
            ("Pooling", "LSTM"),
            "models.LSTM is not supported; supported are Transformer, Pooling, Dense, LayerNorm, Normalize",
        ),
        (("Normalize",), "one Pooling must follow the transformer"),
        ((), "no module follows the transformer"),
        (("Pooling", "Pooling"), "one Pooling must follow the transformer"),
        (("Dense", "Pooling"), "1_Dense/config.json: Dense is not supported before Pooling"),
        (("Normalize", "Pooling"), r"modules\.json: Normalize is not supported before Pooling"),
    ],
)
def test_modules_that_no_engine_runs_are_refused(tmp_path: Path, kinds: tuple[str, ...], text: str) -> None:
    files: dict[str, object] = {"1_Pooling/config.json": {}, "1_Dense/config.json": {}, "2_Pooling/config.json": {}}
    with pytest.raises(UnsupportedModelError, match=text):
        spec_of(tmp_path, {**modules(*kinds), **files})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.Threshold"},
            "activation 'torch.nn.modules.activation.Threshold' is not supported; supported are torch.nn's ELU, GELU, ",
        ),
        ({"module_input_name": "token_embeddings"}, "Dense on token_embeddings is not supported"),
    ],
)
def test_a_dense_that_no_engine_runs_is_refused(tmp_path: Path, config: dict[str, object], text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"2_Dense/config.json: {text}"):
        spec_of(tmp_path, {**modules("Pooling", "Dense"), **MEAN, "2_Dense/config.json": config})


# --- Lengths


@pytest.mark.parametrize(
    ("files", "length"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 128}}, 128),
        ({"sentence_roberta_config.json": {"max_seq_length": 99}}, 99),
        (
            {"sentence_bert_config.json": {"max_seq_length": 128}, "tokenizer_config.json": {"model_max_length": 64}},
            128,
        ),
        (
            {"sentence_bert_config.json": {"max_seq_length": None}, "tokenizer_config.json": {"model_max_length": 64}},
            64,
        ),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, 512),
        ({"sentence_bert_config.json": {"max_seq_length": 4096}}, 512),
        ({}, 512),
    ],
)
def test_the_length_is_that_of_sentence_transformers_within_the_position_table(
    tmp_path: Path, files: dict[str, object], length: int
) -> None:
    assert spec_of(tmp_path, files).max_seq_len == length


ASKED, FROM_TOKENIZER = ("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")


@pytest.mark.parametrize(
    ("kind", "asked", "config", "length"),
    [
        ("T5Encoder", ASKED, {"n_positions": 512}, 600),
        ("T5Encoder", FROM_TOKENIZER, {"n_positions": 512}, 600),
        ("T5Encoder", None, {"n_positions": 512}, 512),
        ("Qwen3", ASKED, {}, 600),
        ("Qwen3", FROM_TOKENIZER, {}, 512),
        ("Qwen3", ASKED, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 512),
        ("Qwen3", ASKED, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 512),
        ("Qwen3", ASKED, {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}}, 512),
        ("DebertaV2", ASKED, {"position_biased_input": False}, 600),
        ("DebertaV2", ASKED, {}, 512),
        ("MPNet", ASKED, {}, 510),
    ],
)
def test_only_a_table_of_positions_limits_the_length_that_is_asked_for(
    kind: str, asked: tuple[str, str] | None, config: dict[str, object], length: int, tmp_path: Path
) -> None:
    """sentence-transformers takes its max_seq_length as it is, and the tokenizer's within max_position_embeddings."""
    files: dict[str, object] = {"tokenizer_config.json": {"model_max_length": 1e30}}
    if asked is not None:
        files[asked[0]] = {asked[1]: 600}
    named = {"architectures": [f"{kind}Model"], **config}
    assert spec_of(tmp_path, {"config.json": {**CONFIG, **named}, **files}).max_seq_len == length


@pytest.mark.parametrize(
    ("kind", "pad", "length"),
    [
        ("Roberta", 1, 512),
        ("Roberta", 5, 508),
        ("XLMRoberta", 1, 512),
        ("Roberta", None, 512),
        ("Camembert", 1, 512),
        ("MPNet", 0, 512),
        ("Bert", 0, 514),
    ],
)
def test_families_that_count_positions_from_the_padding_id_have_fewer(
    tmp_path: Path, kind: str, pad: int | None, length: int
) -> None:
    """The class says how positions are counted; older config.json files have no model_type."""
    named = {"architectures": [f"{kind}Model"], "max_position_embeddings": 514, "pad_token_id": pad}
    assert spec_of(tmp_path, {"config.json": {**CONFIG, **named}}).max_seq_len == length


def test_a_folder_that_names_no_length_is_refused(tmp_path: Path) -> None:
    without = {name: value for name, value in CONFIG.items() if name != "max_position_embeddings"}
    config = without | {"architectures": ["T5EncoderModel"]}
    with pytest.raises(CheckpointError, match="has a length"):
        spec_of(tmp_path, {"config.json": config})


# --- Prompts


def test_prompts_and_the_default_one_are_read(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    spec = spec_of(tmp_path, {"config_sentence_transformers.json": prompts})
    assert spec.prompts["query"] == "query: "
    assert spec.default_prompt_name == "query"


def test_a_prompt_without_text_is_a_prompt(tmp_path: Path) -> None:
    """sentence-transformers writes empty ones for query and document into every model it saves."""
    prompts = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}
    assert spec_of(tmp_path, {"config_sentence_transformers.json": prompts}).prompts == {"query": "", "document": ""}


def test_lower_casing_is_read(tmp_path: Path) -> None:
    assert spec_of(tmp_path, {"sentence_bert_config.json": {"do_lower_case": True}}).do_lower_case
    assert not spec_of(tmp_path, {"sentence_bert_config.json": {}}).do_lower_case
    assert spec_of(tmp_path, {"sentence_bert_config.json": {"do_lower_case": None}}).do_lower_case is False


# --- Missing and malformed files


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_spec(checkpoint(tmp_path))


@pytest.mark.parametrize("missing", ["1_Pooling/config.json", "2_Dense/config.json"])
def test_a_missing_module_config_is_named(tmp_path: Path, missing: str) -> None:
    files = {**modules("Pooling", "Dense"), **MEAN, "2_Dense/config.json": {}}
    del files[missing]
    with pytest.raises(CheckpointError, match=f"has no {missing}"):
        spec_of(tmp_path, files)


def test_a_config_that_does_not_say_whose_weights_it_is_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no `architectures`; add the class .*BertModel"):
        spec_of(tmp_path, {"config.json": {"hidden_size": 8}})


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json", "sentence_bert_config.json"])
def test_a_malformed_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_text("{")
    with pytest.raises(BeiError, match=name):
        read_spec(checkpoint(tmp_path))


# --- Causal language models that rerank

CAUSAL: dict[str, object] = {
    "config.json": {**CONFIG, "architectures": ["Qwen3ForCausalLM"]},
    "tokenizer.json": TOKENIZER,
}
TEXT = "{query} {document}"


def ranker(folder: Path, template: RerankTemplate | None) -> ModelSpec:
    """The spec of a causal language model in a folder."""
    spec_of(folder, CAUSAL)
    return read_spec(checkpoint(folder), template=template)


def test_a_template_says_what_a_causal_model_answers(tmp_path: Path) -> None:
    spec = ranker(tmp_path, RerankTemplate("own", TEXT, tokens=("maybe", "yes")))
    assert spec.classifier is not None
    assert spec.classifier.yes_no_ids == (7, 5)


def test_a_template_without_answers_is_no_use_to_a_causal_model(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'this Qwen3ForCausalLM are the answers no and yes; give it as JSON: \{"template"'
    ):
        ranker(tmp_path, RerankTemplate("own", TEXT))


def test_a_model_known_by_its_name_answers_as_it_always_does(tmp_path: Path) -> None:
    spec = ranker(tmp_path / "Qwen3-Reranker-0.6B", RerankTemplate("own", TEXT))
    assert spec.classifier is not None
    assert spec.classifier.yes_no_ids == (3, 5)
    assert spec.template is not None
    assert (spec.template.name, spec.template.tokens) == ("own", ("no", "yes"))


def test_an_answer_that_is_no_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no token 'perhaps'"):
        ranker(tmp_path, RerankTemplate("own", TEXT, tokens=("no", "perhaps")))


def test_a_template_is_no_use_to_a_model_that_gives_vectors(tmp_path: Path) -> None:
    spec_of(tmp_path, {})
    with pytest.raises(ConfigError, match="rerank_template is for rerankers, and BertModel gives vectors"):
        read_spec(checkpoint(tmp_path), template=RerankTemplate("own", TEXT))


@pytest.mark.parametrize(
    ("tokens", "is_same"), [(("no", "yes"), True), (None, True), (("yes", "no"), False), (("maybe", "yes"), False)]
)
def test_a_built_model_knows_the_answers_it_was_built_with(
    tmp_path: Path, tokens: tuple[str, str] | None, is_same: bool
) -> None:
    spec = ranker(tmp_path, RerankTemplate("own", TEXT, tokens=("no", "yes")))
    assert spec.scores_by(RerankTemplate("other", TEXT, tokens=tokens)) == is_same
    assert not spec_of(tmp_path / "vectors", {}).scores_by(RerankTemplate("other", TEXT, tokens=tokens))
