"""Converts checkpoints whose published form transformers 5 cannot read to a form that it can read."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.golden.checkpoints import Json

Config = dict[str, Json]

SAME_IN_GTE = (
    "hidden_act",
    "hidden_size",
    "id2label",
    "intermediate_size",
    "label2id",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "problem_type",
    "type_vocab_size",
    "vocab_size",
)


@contextmanager
def readable(folder: Path, changes: Config | None = None) -> Iterator[Path]:
    """Yields `folder` itself, or a copy that transformers can read, with `changes` to its config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    translate = translation(config)
    if translate is None and not changes:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(folder, copy)
        translated = translate(config) if translate else config
        (copy / "config.json").write_text(json.dumps(translated | (changes or {})), encoding="utf-8")
        if translate in (nomic_config, gte_config):
            has_head = "Classification" in translated["architectures"][0]
            _rename(copy / "model.safetensors", f"{translated['model_type']}." if has_head else "")
        if translate is flash_config:
            _split_qkv(copy / "model.safetensors")
        yield copy


def translation(config: Config) -> Callable[[Config], Config] | None:
    """Returns the function that converts a published config for transformers, or for a class of `remote.py`."""
    if config["architectures"][0].startswith("JinaBert"):
        return jina_config
    if "XLMRobertaFlashConfig" in config.get("auto_map", {}).get("AutoConfig", ""):
        return flash_config
    if config.get("num_experts"):
        return lambda published: published | {"model_type": "nomic_moe"}
    if "Qwen3Bidirectional" in config.get("auto_map", {}).get("AutoModel", ""):
        return lambda published: published | {"model_type": "qwen3_bidirectional"}
    return {"nomic_bert": nomic_config, "new": gte_config}.get(config["model_type"])


def jina_config(published: Config) -> Config:
    """Returns the config of `remote.JinaBertModel`."""
    return published | {"model_type": "jina_bert", "is_code": "qk-post-norm" in published["_name_or_path"]}


def flash_config(published: Config) -> Config:
    """Returns the config of transformers' XLM-R, which computes the same."""
    name = published["architectures"][0].replace("Flash", "")
    return {key: value for key, value in published.items() if key != "auto_map"} | {
        "architectures": [name],
        "model_type": "xlm-roberta",
    }


def _split_qkv(path: Path) -> None:
    """Renames and splits tensors for transformers; inverts the models' `convert_roberta_weights_to_flash.py`."""
    names = {
        r"\.encoder\.layers\.": ".encoder.layer.",
        r"^encoder\.layers\.": "encoder.layer.",
        r"emb_ln\.": "embeddings.LayerNorm.",
        r"\.norm1\.": ".attention.output.LayerNorm.",
        r"\.norm2\.": ".output.LayerNorm.",
        r"\.mlp\.fc1\.": ".intermediate.dense.",
        r"\.mlp\.fc2\.": ".output.dense.",
        r"\.mixer\.out_proj\.": ".attention.output.dense.",
    }
    found = {}
    for name, value in load_file(path).items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        parts = value.chunk(3) if ".mixer.Wqkv." in name else [value]
        for part, kind in zip(parts, ("query", "key", "value"), strict=False):
            found[name.replace(".mixer.Wqkv.", f".attention.self.{kind}.")] = part.clone()
    save_file(found, path, {"format": "pt"})


def _rename(path: Path, to: str) -> None:
    """Replaces the published prefix by the encoder's name in transformers, which renames the rest when it loads."""
    tensors = load_file(path)
    prefix = re.compile(r"^(new|bert)\.")
    save_file({prefix.sub(to, name): value for name, value in tensors.items()}, path, {"format": "pt"})


def nomic_config(published: Config) -> Config:
    """Returns the config of transformers' NomicBert that is equivalent to the published one."""
    labels = {key: published[key] for key in ("id2label", "label2id", "problem_type") if key in published}
    return labels | {
        "architectures": published["architectures"],
        "model_type": "nomic_bert",
        "hidden_act": {"swiglu": "silu"}[published["activation_function"]],
        "hidden_size": published["n_embd"],
        "intermediate_size": published["n_inner"],
        "layer_norm_eps": published["layer_norm_epsilon"],
        "max_position_embeddings": published["n_positions"],
        "num_attention_heads": published["n_head"],
        "num_hidden_layers": published["n_layer"],
        "pad_token_id": published["pad_token_id"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(published["rotary_emb_base"])},
        "type_vocab_size": published["type_vocab_size"],
        "vocab_size": published["vocab_size"],
    }


def gte_config(published: Config) -> Config:
    """Returns the config of transformers' Gte, which is NewModel under another name."""
    name = published["architectures"][0].replace("New", "Gte")
    config = {key: published[key] for key in SAME_IN_GTE if key in published}
    return config | {"architectures": [name], "model_type": "gte", "rope_parameters": ntk_rope(published)}


def ntk_rope(published: Config) -> dict[str, Any]:
    """Returns NewModel's fixed NTK scaling (https://kexue.fm/archives/9706) as transformers' rope_parameters.

    The base grows by the factor, and every frequency shrinks by factor^(2 / head size), at every length.
    """
    theta, scaling = float(published["rope_theta"]), published["rope_scaling"]
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    factor, head = scaling["factor"], published["hidden_size"] // published["num_attention_heads"]
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head)}
