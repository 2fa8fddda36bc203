"""NVIDIA's modelopt as a reference for our quantisation to fp8, and as a maker of folders that must load."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.engines.calibration import encode
from bei_core.engines.torch.folder import Facts, head_tensors, write_folder
from bei_core.engines.torch.models.heads import F32Layers, Head
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.quantize import Scheme
from bei_core.engines.torch.tensorfile import Entry
from bei_core.tasks import Rows, Text, Tokens

with warnings.catch_warnings():  # modelopt gives warnings about its own code when it is imported
    warnings.simplefilter("ignore")
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

# Modules of transformers that are not quantised. Norms are listed because modelopt would quantise their inputs.
_PLAIN = ("*pooler*", "*classifier*", "*score*", "*lm_head*", "*embeddings_project*", "*LayerNorm*", "*norm*")
# Layers that the engine joins in one linear layer, which has one scale.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)


class Simulated:
    """A checkpoint quantised by modelopt, whose own simulation computes it, with our pooling and heads."""

    def __init__(self, checkpoint: Checkpoint, facts: Facts, scheme: Scheme, tokenizer: Path) -> None:
        self.checkpoint, self.facts = checkpoint, facts
        # "eager", because torch's fused attention ignores Gemma 2's soft cap.
        self.transformer = AutoModel.from_pretrained(
            checkpoint.folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
        # These have no setting for bidirectional attention in transformers, but use a 4D mask as given.
        self.is_bidirectional = facts.mask == "full" and facts.of_family.name in {"llama", "mistral", "qwen2", "qwen3"}
        self.has_types = int(facts.spec.config.get("type_vocab_size") or 0) > 1
        self.head = Head(facts.spec)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in head_tensors(checkpoint, facts)}
        self.head.layers = F32Layers(tensors, torch.device("cpu"))
        texts: Sequence[Text] = scheme.samples.calibration
        tokens = encode(texts, facts.spec, tokenizer, scheme.calibration.max_seq_length)
        config = copy.deepcopy(mtq.FP8_DEFAULT_CFG)
        config["quant_cfg"] += [{"quantizer_name": name, "enable": False} for name in _PLAIN]
        with torch.inference_mode():
            mtq.quantize(self.transformer, config, forward_loop=lambda _: list(self._each(tokens)))
            _share_scales(self.transformer)

    def rows(self, texts: Sequence[Tokens]) -> Rows:
        """f32[B, D] of B sequences, each computed alone."""
        with torch.inference_mode():
            rows = [self.head.rows(hidden, sequences) for hidden, sequences in self._each(texts)]
        result: Rows = torch.cat(rows).numpy()
        return result

    def _each(self, texts: Sequence[Tokens]) -> Iterator[tuple[Any, Sequences]]:
        """Token vectors [L, H] of each sequence, and the sequence as a batch of one."""
        for text in texts:
            ids, types, size = torch.from_numpy(text.ids), torch.from_numpy(text.type_ids), len(text)
            positions = torch.arange(size)
            more = {"token_type_ids": types[None].long()} if self.has_types else {}
            if self.is_bidirectional:
                more["attention_mask"] = torch.zeros(1, 1, size, size)
            hidden = self.transformer(input_ids=ids[None].long(), **more).last_hidden_state[0]
            lengths = torch.tensor([size], dtype=torch.int32)
            yield hidden, Sequences(ids, types, positions, positions >= text.skip, lengths, [size])

    def write(self, folder: Path) -> None:
        """Writes an engine folder with the weights that modelopt exports."""
        self.transformer.config.architectures = [type(self.transformer).__name__]  # modelopt refuses a config without
        with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
            export_hf_checkpoint(self.transformer, export_dir=temporary)
            exported = Path(temporary)
            written = json.loads((exported / "config.json").read_text())
            more = {"quantization_config": written["quantization_config"]}
            tensors = resolve(str(exported)).tensors()
            quantized = {
                name: Entry.of(name, tensors, None)
                for name in tensors
                if tensors.dtype(name) == "F8_E4M3" or name.endswith("_scale")
            }
            write_folder(folder, self.checkpoint, self.facts, "bf16", quantized, more)
            shutil.copyfile(exported / "hf_quant_config.json", folder / "hf_quant_config.json")


def _share_scales(model: Any) -> None:
    """Gives layers that the engine joins the same range, the widest."""
    for module in model.modules():
        children = dict(module.named_children())
        for names in _FUSED:
            layers = [children[name] for name in names if name in children]
            for of in ("weight_quantizer", "input_quantizer"):
                quantizers = [getattr(layer, of) for layer in layers if getattr(layer, of).is_enabled]
                if quantizers:
                    widest = torch.stack([each.amax for each in quantizers]).amax(0)
                    for each in quantizers:
                        each.amax = widest
