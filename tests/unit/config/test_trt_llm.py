"""Our `trt_llm` schema compared with that of truss, which is installed for another interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bei_core.config.settings import Settings
from bei_core.config.trt_llm import TrtLlm
from bei_core.errors import ConfigError

ROOT = Path(__file__).parents[3]
BUILD: dict[str, Any] = {"base_model": "encoder", "checkpoint_repository": {"source": "HF", "repo": "owner/name"}}

# Reads blocks as a JSON list, writes the schema, truss's verdict on each block, and its top-level keys.
DUMP = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from truss.base import trt_llm_config, truss_config

def verdict(block):
    try:
        build = trt_llm_config.TRTLLMConfiguration.model_validate(block).build
    except Exception:
        return None
    return [build.max_num_tokens, build.max_batch_size, build.quantization_config.calib_size]

print(json.dumps({
    "schema": trt_llm_config.TRTLLMConfigurationV1.model_json_schema(),
    "verdicts": [verdict(block) for block in json.load(sys.stdin)],
    "top": sorted(truss_config.TrussConfig.model_fields),
}))
"""


def build(**keys: object) -> dict[str, Any]:
    return {"build": {**BUILD, **keys}}


CASES = [
    *({"build": {**BUILD, "base_model": base_model}} for base_model in ("encoder", "encoder_bert")),
    *(build(max_num_tokens=value) for value in (64, 65, 8192, 1_048_576, 1_048_577, "128", 128.0, True)),
    *(build(max_batch_size=value) for value in (0, 1, 32, 2048, 2049)),
    *(build(max_seq_len=value) for value in (0, 1, 1_048_576, 1_048_577, None)),
    *(build(num_builder_gpus=value) for value in (0, 1, 8)),
    *(build(max_beam_width=value) for value in (0, 1, 2)),
    *(build(quantization_config={"calib_size": value}) for value in (0, 63, 64, 65, 128, 16_384, 16_448)),
    *(build(quantization_config={"calib_max_seq_length": value}) for value in (63, 64, 96, 16_384, 16_448)),
    *(build(quantization_type=value) for value in ("no_quant", "fp8", "fp8_kv", "fp4_mlp_only", "int8", "FP8")),
    *(build(checkpoint_repository={"source": source, "repo": "a/b"}) for source in ("HF", "S3", "LOCAL", "hf", "R2")),
    *(build(checkpoint_repository=value) for value in (None, {"source": "HF"}, {"repo": "a/b"}, "a/b")),
    build(plugin_configuration={"paged_kv_cache": False, "use_paged_context_fmha": False}),
    *({**build(), "runtime": {"webserver_default_route": r}} for r in ("/predict", "/v1/systemone", "/embed")),
    *({**build(), "runtime": {"kv_cache_free_gpu_mem_fraction": value}} for value in (0.5, 1, "half")),
    *({**build(), "runtime": {"batch_scheduler_policy": value}} for value in ("max_utilization", "fifo")),
    *({**build(), "inference_stack": value} for value in ("v1", "v3")),
    {**build(), "version_overrides": {"bei_version": "0.0.18"}},
    {},
    {"build": {}},
]

# Told apart on purpose; `trt_llm.py` says why.
FREE_FORM = {"build.speculator", "build.lora_adapters", "build.lora_configuration", "version_overrides"}
LEGACY = {"weights_int8", "weights_kv_int8", "weights_int4", "weights_int4_kv_int8", "smooth_quant"}
STRICTER = {"build.base_model", "build.checkpoint_repository"}


@cache
def truss() -> dict[str, Any]:
    python = Path(os.environ.get("BEI_TRUSS_PYTHON") or ROOT / ".venv-truss" / "bin" / "python")
    if not python.exists():
        pytest.fail(f"no truss to compare with at {python}; make it with scripts/test_envs.sh")
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}  # parsing a block may look its repository up
    done = subprocess.run(
        [str(python), "-c", DUMP], input=json.dumps(CASES), env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def flatten(schema: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Dotted key -> what a JSON schema says of it, in one spelling for pydantic's and msgspec's."""
    found = {}
    for name, item in schema["properties"].items():
        kinds = [resolve(kind, definitions) for kind in item.get("anyOf", [item])]
        kind = next(kind for kind in kinds if kind.get("type") != "null")
        if "enum" in kind:  # of several enums, msgspec makes several kinds
            kind = {"enum": [choice for part in kinds for choice in part.get("enum", [])]}
        limits = {key: kind[key] for key in ("minimum", "maximum", "multipleOf", "exclusiveMinimum") if key in kind}
        if kind.get("type") == "integer" and "exclusiveMinimum" in limits:
            limits["minimum"] = limits.pop("exclusiveMinimum") + 1
        found[prefix + name] = {
            "type": "string" if "enum" in kind or "const" in kind else kind["type"],
            "choices": set(kind.get("enum", [kind["const"]] if "const" in kind else [])),
            "limits": limits,
            "nullable": any(other.get("type") == "null" for other in kinds),
            "default": item.get("default", "required"),
        }
        if "properties" in kind and prefix + name not in FREE_FORM:
            found |= flatten(kind, definitions, f"{prefix}{name}.")
    return found


def resolve(kind: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    return {**definitions[kind["$ref"].rpartition("/")[2]], **kind} if "$ref" in kind else kind


@cache
def theirs() -> dict[str, dict[str, Any]]:
    schema = truss()["schema"]
    return flatten(schema, schema["$defs"])


@cache
def ours() -> dict[str, dict[str, Any]]:
    schema = msgspec.json.schema(TrtLlm)
    return flatten(resolve(schema, schema["$defs"]), schema["$defs"])


def differing(aspect: str, exempt: set[str]) -> dict[str, tuple[Any, Any]]:
    names = (set(theirs()) & set(ours())) - exempt
    pairs = {name: (ours()[name][aspect], theirs()[name][aspect]) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def test_the_same_keys() -> None:
    assert set(ours()) == set(theirs())


def test_the_same_types() -> None:
    assert differing("type", set()) == {}


def test_the_same_choices() -> None:
    assert differing("choices", {"build.base_model", "build.quantization_type"}) == {}
    assert ours()["build.base_model"]["choices"] == {"encoder", "encoder_bert"}
    assert ours()["build.base_model"]["choices"] < theirs()["build.base_model"]["choices"]
    assert theirs()["build.quantization_type"]["choices"] - ours()["build.quantization_type"]["choices"] == LEGACY


def test_the_same_defaults() -> None:
    exempt = STRICTER | {"build.max_num_tokens", "version_overrides"}  # by base model, free-form
    assert differing("default", exempt) == {}


def test_the_same_limits() -> None:
    exempt = {"build.quantization_config.calib_size", "build.quantization_config.calib_max_seq_length"}
    assert differing("limits", exempt) == {}  # those two are checked in code there, so by cases here


def test_null_is_allowed_in_the_same_places() -> None:
    assert differing("nullable", {"build.checkpoint_repository", "build.max_num_tokens"}) == {}


@pytest.mark.parametrize("index", range(len(CASES)), ids=[json.dumps(case)[:100] for case in CASES])
def test_a_block_is_accepted_where_truss_accepts_it_and_read_the_same(index: int) -> None:
    block = CASES[index]
    expected = truss()["verdicts"][index]
    try:
        settings = Settings.from_truss_config({"trt_llm": block})
    except ConfigError:
        assert expected is None
        return
    assert settings.trt_llm is not None
    calib_size = settings.trt_llm.build.quantization_config.calib_size
    assert [settings.max_batch_tokens, settings.max_batch_requests, calib_size] == expected


def test_no_setting_is_named_like_a_key_of_trusss_own() -> None:
    assert set(truss()["top"]) & set(Settings.__struct_fields__) == {"trt_llm"}
