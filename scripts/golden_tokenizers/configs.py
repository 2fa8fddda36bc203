"""tokenizer_config.json and its like, as they are in published repositories."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def token(content: str, **flags: bool) -> Json:
    """An entry of added_tokens_decoder."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


# As intfloat/e5-mistral-7b-instruct, Salesforce/SFR-Embedding-Mistral and Linq-AI-Research/Linq-Embed-Mistral have it.
E5_MISTRAL = {
    "add_bos_token": True,
    "add_eos_token": True,
    "added_tokens_decoder": {"0": token("<unk>"), "1": token("<s>"), "2": token("</s>")},
    "additional_special_tokens": [],
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": True,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "</s>",
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}

GTE_QWEN2 = {
    "add_eos_token": True,
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]},
    "clean_up_tokenization_spaces": False,
}

# facebook/mcontriever's, of before added_tokens_decoder.
MCONTRIEVER = {
    "do_lower_case": False,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "model_max_length": 512,
    "name_or_path": "bert-base-multilingual-cased",
    "tokenizer_class": "BertTokenizer",
}

QWEN = {
    "added_tokens_decoder": {"360": token("<|endoftext|>"), "361": token("<|im_start|>"), "362": token("<|im_end|>")},
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "model_max_length": 32768,
}

QWEN_EOS = {
    "type": "Sequence",
    "processors": [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 1}},
            ],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [360], "tokens": ["<|endoftext|>"]}},
        },
    ],
}

DOC = {"lstrip": False, "normalized": True, "rstrip": True, "special": False}

# FacebookAI/roberta-base's special_tokens_map.json, of before added_tokens_decoder.
ROBERTA_MAP = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "mask_token": {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False},
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
}

# google-t5's own configuration of before tokenizer.json.
T5 = {
    "additional_special_tokens": [f"<extra_id_{index}>" for index in range(100)],
    "eos_token": "</s>",
    "extra_ids": 100,
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
