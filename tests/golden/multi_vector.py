"""The files of models with a vector per token, in the form of sentence-transformers 6.2."""

from __future__ import annotations

from typing import Any

from tests.golden.sentence import modules

ON_TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
MULTI_VECTOR: dict[str, Any] = {  # as MultiVectorEncoder of sentence-transformers 6.2 writes it
    "modules.json": modules("Dense", "MultiVectorMask", "Normalize", package="sentence_transformers.base.modules"),
    "1_Dense/config.json": {"bias": False, "activation_function": "torch.nn.modules.linear.Identity", **ON_TOKENS},
    "2_MultiVectorMask/config.json": {"skiplist_words": ["!"], "skiplist_tasks": ["document"]},
    "3_Normalize/config.json": ON_TOKENS,
    "config_sentence_transformers.json": {
        "model_type": "MultiVectorEncoder",
        "prompts": {"query": "[unused0] ", "document": "[unused1] ", "other": "o: "},
        "default_prompt_name": None,
    },
}
WITHOUT_DENSE: dict[str, Any] = {
    "modules.json": modules("Normalize", package="sentence_transformers.base.modules"),
    "1_Normalize/config.json": ON_TOKENS,
}
