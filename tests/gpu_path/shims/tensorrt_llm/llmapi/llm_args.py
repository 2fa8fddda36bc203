from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tensorrt_llm.calls import record


@dataclass(kw_only=True)
class EncodeCudaGraphConfig:
    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False
    mode: str = "encode"
    num_tokens: list[int] | None = None
    max_num_token: int = 0
    seq_lens: list[int] | None = None
    max_seq_len: int = 0
    extra_model_inputs: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        record("EncodeCudaGraphConfig", (), dict(self.__dict__))

    def fit(self, lengths: list[int]) -> tuple[int, int] | None:
        """(sequences, tokens) of the smallest graph for a batch of these lengths."""
        for size in sorted(self.batch_sizes or ()):
            for tokens in sorted(self.num_tokens or ()):
                spare = tokens - sum(lengths)
                if size >= len(lengths) and spare >= 0 and max(lengths) <= max(self.seq_lens or (0,)):
                    return size, tokens
        return None
