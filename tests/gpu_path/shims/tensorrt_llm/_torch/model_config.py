from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig


@dataclass
class QuantConfig:
    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    exclude_modules: list[str] | None = None


@dataclass(kw_only=True)
class ModelConfig:
    pretrained_config: Any = None
    quant_config: QuantConfig = field(default_factory=QuantConfig)
    extra_attrs: dict[str, Any] = field(default_factory=dict)

    def get_quant_config(self, name: str | None = None) -> QuantConfig:
        return self.quant_config

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: Any) -> ModelConfig:
        config = AutoConfig.from_pretrained(str(folder))
        config.torch_dtype = dtype
        quantized = folder / "hf_quant_config.json"
        if not quantized.is_file():
            return cls(pretrained_config=config)
        facts = json.loads(quantized.read_text())["quantization"]
        known = {name: facts.get(name) for name in ("quant_algo", "kv_cache_quant_algo", "exclude_modules")}
        return cls(pretrained_config=config, quant_config=QuantConfig(**known))
