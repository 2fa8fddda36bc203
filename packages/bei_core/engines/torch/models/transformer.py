"""`Transformer`, for every family: `TensorNames` and `Sizes` say what a checkpoint has."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts, attention_of
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models.deberta import Convolution, DisentangledBias, read_positions
from bei_core.engines.torch.models.heads import F32Layers
from bei_core.engines.torch.models.layers import Rope, TransformerLayer, add_offset, make_mlp, make_norm, run_layer
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights
from bei_core.models.sizes import Sizes
from bei_core.models.tensor_names import POSITIONS, TASK_TYPES, TYPES, TensorNames, find_names


class Transformer(nn.Module):
    """Token vectors [T, H] of packed sequences; [T, D] if the model projects them at the end.

    Which of a family's `TensorNames` a checkpoint has is only known when it is loaded. The first ones make the layers.
    """

    run: Any = staticmethod(run_layer)  # or the same compiled

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        self.layout, self.sizes, self.kernels = facts.of_family.layout, facts.sizes, kernels
        sizes, names, max_len = self.sizes, self.layout.names[0], facts.spec.max_seq_len
        self.make_norm = partial(make_norm, sizes, kernels.dtype)
        self.embeddings = Embeddings(sizes, names, facts.spec.vocab_size, kernels)
        attention = attention_of(facts)
        ropes = {kind: Rope(sizes, max_len, kind) if sizes.has_rope else None for kind in attention}
        has_distances = sizes.has_alibi or names.relative_bias
        self.distance_bias = DistanceBias(sizes.heads.num_heads, max_len) if has_distances else None
        self.layers: Any = nn.ModuleList()
        options = sizes.disentangled
        for number, kind in enumerate(sizes.layer_types):
            bias = self.distance_bias if options is None else DisentangledBias(sizes, options, max_len)
            mixer = kernels.attention(attention[kind], ropes[kind], number, bias)
            self.layers.append(TransformerLayer(mixer, make_mlp(sizes, kernels, number), names, number, self.make_norm))
        self.convolution: Any = None  # after the first layer
        if options is not None and options.kernel_size > 0:
            self.convolution = Convolution(sizes, options, kernels.dtype)
        self.final_norm = self.make_norm() if names.is_pre_norm else nn.Identity()
        self.projection: F32Layers | None = None

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        names = find_names(self.layout.names, weights)
        sizes = self.layout.fit(self.sizes, names, weights)
        self.embeddings.load(weights, names)
        for number, layer in enumerate(self.layers):
            if sizes.is_gated != self.sizes.is_gated:  # some NomicBERTs
                layer.mlp = make_mlp(sizes, self.kernels, number)
            if names.qk_norms and not sizes.is_rms:
                layer.add_jina_norms(self.make_norm)
            layer.load(weights, names.layer.format(number), names)
        weights.load(self.final_norm, names.final_norm)
        add_offset(self, self.sizes.norm_offset)
        if self.distance_bias is not None and names.relative_bias:
            self.distance_bias.load(weights, names.relative_bias, self.sizes.max_distance)
        self._load_disentangled(weights, names)
        projection = (f"{names.final_projection}.{part}" for part in ("weight", "bias"))
        if tensors := {name: weights.whole[name] for name in projection if name in weights.whole}:
            self.projection = F32Layers(tensors, self.final_norm.weight.device)

    def _load_disentangled(self, weights: Weights, names: TensorNames) -> None:
        if self.sizes.disentangled is None:
            return
        positions = read_positions(weights, self.sizes, self.sizes.disentangled)
        for number, layer in enumerate(self.layers):
            layer.attention.score_bias.load(weights, positions, names.layer.format(number), self.kernels.dtype)
        if self.convolution is not None:
            self.convolution.load(weights)

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H] or [T, D]."""
        first = x = self.embeddings(sequences)
        for number, layer in enumerate(self.layers):
            x = self.run(layer, x, sequences)
            if number == 0 and self.convolution is not None:
                x = self.convolution(first, x, sequences)
        x = self.final_norm(x)
        if self.projection is None:
            return x
        return self.projection.linear(self.layout.names[0].final_projection, x.float())


class Embeddings(nn.Module):
    """The sum of each token's rows in the tables of words, positions and types, projected and normed."""

    def __init__(self, sizes: Sizes, names: TensorNames, num_words: int, kernels: Kernels) -> None:
        super().__init__()
        self.sizes, self.dtype, hidden = sizes, kernels.dtype, sizes.hidden
        width = sizes.width or hidden
        rows = {"words": num_words, "positions": sizes.num_positions, "types": sizes.num_types}
        self.tables = nn.ModuleDict(
            {name: _table(number, width, self.dtype) for name, number in rows.items() if number}
        )
        norm_width = width if names.normed_projection else hidden
        self.norm = make_norm(sizes, self.dtype, norm_width) if names.embedding_norm else nn.Identity()

        def projection(name: str, *, bias: bool) -> Any:
            is_needed = name and width != hidden
            return kernels.linear(width, hidden, "embeddings", bias=bias) if is_needed else nn.Identity()

        self.project = projection(names.projection, bias=False)
        self.project_normed = projection(names.normed_projection, bias=True)

    def load(self, weights: Weights, names: TensorNames) -> None:
        """Loads all tables and layers."""
        if self.sizes.num_types is None and f"{TYPES}.weight" in weights:
            types = weights.layer(TYPES)["weight"]
            self.tables["types"] = _table(len(types), self.sizes.hidden, self.dtype).to(types.device)
        layers = {"words": names.words, "positions": POSITIONS, "types": TYPES}
        for name, table in self.tables.items():
            weights.load(table, layers[name])
        if self.sizes.has_task_type:
            types = self.tables["types"].weight
            types += weights.layer(TASK_TYPES)["weight"][0].to(types)
        weights.load(self.norm, names.embedding_norm)
        for layer, name in ((self.project, names.projection), (self.project_normed, names.normed_projection)):
            if not isinstance(layer, nn.Identity):
                layer.load_weights([weights.layer(name)])

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns the input of the first layer, [T, H]."""
        x, positions = self.tables["words"](sequences.ids), sequences.position_ids
        if "positions" in self.tables:
            if (first := self.sizes.padding_id) is not None:  # such tokens have its row of the position table
                positions = sequences.count_up(sequences.ids != first) + first
            x = x + self.tables["positions"](positions)
        if "types" in self.tables:
            types = self.tables["types"]
            x = x + (types.weight[0] if len(types.weight) == 1 else types(sequences.type_ids))
        x = x if self.sizes.embedding_scale == 1 else x * self.sizes.embedding_scale
        return self.project_normed(self.norm(self.project(x)))


def _table(number: int, width: int, dtype: torch.dtype) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.empty(number, width, dtype=dtype))
