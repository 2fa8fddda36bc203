"""Folders of rerankers with a chat template, as CrossEncoder of sentence-transformers 5.4 writes them.

Every folder has the same tiny Qwen3 or Llama with random weights; what differs are the chat template and the files that
say how it is applied. `scripts/golden/chat_templates.py` computes what sentence-transformers makes of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.golden import checkpoints
from tests.golden.checkpoints import DATA, Json
from tests.golden.sentence import BASE, Files
from tests.golden.sentence_heads import CROSS_ENCODER
from tests.golden.weights import DECODER, Shape, draw, encode, safetensors

EXPECTED = DATA / "expected" / "chat_templates.safetensors"

LONG = "the quick brown fox jumps over the lazy dog, and then it runs home again " * 6
PAIRS = (
    ("numbers 1 2 3", "A text with NAMES & <tags>, {query} and 'quotes'."),
    ("  space around \n", "\tand Ünïcode\n\n"),
    ("what is it?", ""),
    ("a long one", LONG),
)
INSTRUCTION = "Find numbers"

HIDDEN, LAYERS, POSITIONS = 32, 2, 1024
VOCABULARY = {"qwen3": 371, "llama": 301}
TOKENIZERS = {"qwen3": "qwen-371-words-added.json", "llama": "llama3-301.json"}
_LAYER: dict[str, Shape] = {
    "input_layernorm.weight": (HIDDEN,),
    "mlp.down_proj.weight": (HIDDEN, 48),
    "mlp.gate_proj.weight": (48, HIDDEN),
    "mlp.up_proj.weight": (48, HIDDEN),
    "post_attention_layernorm.weight": (HIDDEN,),
    "self_attn.k_proj.weight": (32, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, 64),
    "self_attn.q_proj.weight": (64, HIDDEN),
    "self_attn.v_proj.weight": (32, HIDDEN),
}
_NORMS: dict[str, Shape] = {"self_attn.k_norm.weight": (16,), "self_attn.q_norm.weight": (16,)}


@dataclass(frozen=True)
class Folder:
    """A folder: its files, which are JSON or texts, the shapes of its weights, and its tokenizer.json."""

    files: Files
    weights: dict[str, Shape]
    tokenizer: str

    def write(self, folder: Path) -> Path:
        """Writes the files; returns the folder."""
        drawn = {name: draw("", name, shape, DECODER) for name, shape in self.weights.items()}
        tensors = {name: ("F32", self.weights[name], encode(values, "F32")) for name, values in drawn.items()}
        (folder / "1_LogitScore").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
        (folder / "tokenizer.json").write_bytes((checkpoints.TOKENIZERS / self.tokenizer).read_bytes())
        for name, content in self.files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2)
            (folder / name).write_text(text, encoding="utf-8")
        return folder


def _weights(family: str, *, has_score: bool) -> dict[str, Shape]:
    layer = {**_LAYER, **(_NORMS if family == "qwen3" else {})}
    return {
        "model.embed_tokens.weight": (VOCABULARY[family], HIDDEN),
        "model.norm.weight": (HIDDEN,),
        **{f"model.layers.{place}.{name}": shape for place in range(LAYERS) for name, shape in layer.items()},
        **({"score.weight": (1, HIDDEN)} if has_score else {}),
    }


def _config(family: str, task: str) -> Json:
    last = VOCABULARY[family] - 1
    return {
        "architectures": [f"{family.capitalize()}For{task}"],
        "model_type": family,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": last,
        "eos_token_id": last,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
        "mlp_bias": False,
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "pad_token_id": last,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "5.0.0",
        "vocab_size": VOCABULARY[family],
        **({} if task == "CausalLM" else {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}),
    }


QWEN: Json = {
    "tokenizer_class": "Qwen2Tokenizer",
    "add_bos_token": False,
    "add_prefix_space": False,
    "bos_token": None,
    "eos_token": "<|endoftext|>",
    "errors": "replace",
    "model_max_length": POSITIONS,
    "pad_token": "<|endoftext|>",
    "padding_side": "left",
    "unk_token": None,
}
LLAMA: Json = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_bos_token": True,
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
    "model_max_length": POSITIONS,
    "pad_token": "<|finetune_right_pad_id|>",
    "padding_side": "left",
}


def chat(
    template: str | None,
    files: dict[str, Any] | None = None,
    *,
    family: str = "qwen3",
    message: Json | None = None,
    arguments: Json | None = None,
    tokenizer: Json | None = None,
    answers: Json | None = None,
    is_causal: bool = True,
) -> Folder:
    """A reranker with a chat template in chat_template.jinja; by the tokens `answers`, or by a layer of its own.

    `message` changes modality_config.message, `arguments` are those of the template, `tokenizer` changes
    tokenizer_config.json.
    """
    entries = [("", f"{BASE}.transformer.Transformer")]
    if is_causal:
        entries.append(("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"))
    logits = {"method": "forward", "method_output_name": "logits"}
    settings = {
        "transformer_task": "text-generation" if is_causal else "sequence-classification",
        "modality_config": {"text": logits, "message": {**logits, "format": "flat", **(message or {})}},
        "module_output_name": "causal_logits" if is_causal else "scores",
        **({} if arguments is None else {"processing_kwargs": {"chat_template": arguments}}),
    }
    content: Files = {
        "config.json": _config(family, "CausalLM" if is_causal else "SequenceClassification"),
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": kind} for place, (path, kind) in enumerate(entries)
        ],
        "sentence_bert_config.json": settings,
        "config_sentence_transformers.json": CROSS_ENCODER,
        "tokenizer_config.json": {**(QWEN if family == "qwen3" else LLAMA), **(tokenizer or {})},
        **({} if template is None else {"chat_template.jinja": template}),
        **({"1_LogitScore/config.json": answers or {"true_token_id": 70, "false_token_id": 80}} if is_causal else {}),
        **(files or {}),
    }
    return Folder(content, _weights(family, has_score=not is_causal), TOKENIZERS[family])


# As Qwen3-Reranker: roles of their own, and a system message that replaces an instruction.
BY_ROLE = """\
{%- set task = messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("Search") -%}
{%- set asked = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set found = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}
<|im_start|>system
Is it relevant?<|im_end|>
<|im_start|>user
Task: {{ task }}
Query: {{ asked }}
Document: {{ found }}<|im_end|>
<|im_start|>assistant
<think>

</think>


"""
# As zerank-2: the query is the system's turn, and the document is the user's.
AS_TURNS = """\
{%- for message in messages %}
    {%- if message.role == "query" or message.role == "system" %}
        {{- "<|im_start|>system\\n" + message.content + "<|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>user\\n" ~ message["content"] ~ "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""
# As ctxl-rerank: the document comes first, and the instruction only if there is one.
STRUCTURED = (
    "{% for m in messages if m.role == 'document' %}Document: {{ m.content[0]['text'] }}\n{% endfor %}"
    "{% for m in messages if m.role == 'query' %}Query: {{ m.content[0].text }}{% endfor %}"
    "{% for m in messages if m.role == 'system' and m.content[0].text %} {{ m.content[0].text }}{% endfor %} ??"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama's: the template writes the token that the tokenizer puts before other texts, and trims what it is given.
TRIMMED = (
    "{% for message in messages %}{% set content = '[' + message['role'] + ']\n' + message['content'] | trim + "
    "eos_token %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
)
PROMPTED: Json = {
    "activation_fn": "torch.nn.modules.activation.Sigmoid",
    "default_prompt_name": "find",
    "model_type": "CrossEncoder",
    "prompts": {"find": "Find words", "other": "Find nothing"},
}

FOLDERS: dict[str, Folder] = {
    "by-role": chat(BY_ROLE),
    "as-turns": chat(AS_TURNS, arguments={"add_generation_prompt": True}, answers={"true_token_id": 70}),
    "without-generation-prompt": chat(AS_TURNS),
    "structured": chat(STRUCTURED, message={"format": "structured"}),
    "roles-passed-through": chat(None, tokenizer={"chat_template": CHATML}, is_causal=False),
    "one-of-several": chat(
        None,
        tokenizer={"chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": CHATML}]},
    ),
    "file-before-the-config": chat(BY_ROLE, tokenizer={"chat_template": CHATML}),
    "trimmed-with-bos": chat(TRIMMED, family="llama"),
    "default-prompt": chat(BY_ROLE, {"config_sentence_transformers.json": PROMPTED}),
    "truncated": chat(BY_ROLE, tokenizer={"model_max_length": 200}),
}
