"""Post-training quantisation of a graph: int8 weights and activations in the transformer's linear layers, by nncf.

Embeddings, norms, softmax, the matmuls inside attention, pooling, modules and heads are not quantised
(docs/decisions/010-int8.md). Before nncf, `smoothquant` moves outliers of activations into weights; after it,
`headroom` makes the weights safe on every processor. nncf is needed to build an engine and never to serve one.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy.typing as npt
from openvino import Model, Node

from bei_core.engines.batch import Batch
from bei_core.engines.openvino.graph import INPUT_NAMES, TOKEN_VECTORS
from bei_core.engines.openvino.packing import pack_rows
from bei_core.engines.openvino.quantize.headroom import requantize
from bei_core.engines.openvino.quantize.smoothquant import ALPHAS, smooth_quant
from bei_core.errors import EngineUnavailableError, UnsupportedModelError
from bei_core.tasks import Tokens

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

# Tokens of a calibration batch. The size matters: nncf's range is the mean of the largest value of each batch.
CALIBRATION_TOKENS = 512

_NOT_OPERATIONS = frozenset({"Parameter", "Constant", "Result"})


def quantize(graph: Model, batches: Sequence[Batch], *, alpha: float | None, mlp_only: bool) -> Model:
    """The graph with int8 linear layers, calibrated on `batches`; changes `graph`, which must not be used afterwards.

    `alpha` is SmoothQuant's; None: the best one for each activation. Raises EngineUnavailableError without nncf,
    UnsupportedModelError for a graph without linear layers.
    """
    nncf = import_nncf()
    make_names_unique(graph)
    matmuls = linear_matmuls(graph, mlp_only=mlp_only)
    if not matmuls:
        raise UnsupportedModelError("the model has no linear layers to quantise")
    smoothed = smooth_quant(graph, matmuls, batches, ALPHAS if alpha is None else (alpha,))
    worst, of_worst = max(smoothed.items(), key=lambda item: item[1].error)
    log.info("int8 for %d linear layers; largest expected error %.2g, in %s", len(smoothed), of_worst.error**0.5, worst)
    model = _quantize_with_nncf(nncf, graph, batches, set(smoothed))
    requantize(model, graph, smoothed)
    return model


def _quantize_with_nncf(nncf: Any, graph: Model, batches: Sequence[Batch], chosen: set[str]) -> Model:  # noqa: ANN401
    matmuls = [node.get_friendly_name() for node in graph.get_ops() if node.get_type_name() == "MatMul"]
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.DISABLE,  # `requantize` prevents overflow
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),  # `smooth_quant` did it
    )
    ignored = nncf.IgnoredScope(
        names=[name for name in matmuls if name not in chosen],
        types=sorted({node.get_type_name() for node in graph.get_ops()} - {"MatMul"} - _NOT_OPERATIONS),
    )
    with _progress_bars_on_stderr():
        return nncf.quantize(
            graph,
            nncf.Dataset(list(batches), _feed),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=ignored,
            advanced_parameters=advanced,
        )


def linear_matmuls(graph: Model, *, mlp_only: bool = False) -> list[Node]:
    """The MatMul nodes of the transformer's linear layers; if `mlp_only`, without those of attention."""
    nodes = graph.get_ordered_ops()
    last = next(node for node in nodes if node.get_friendly_name() == TOKEN_VECTORS)
    computed = _downstream([node for node in nodes if node.get_type_name() == "Parameter"])
    after = _downstream([last])
    return [
        node
        for node in nodes
        if node.get_type_name() == "MatMul"
        and node.input_value(1).get_node().get_type_name() == "Constant"
        and node.get_instance_id() in computed - after
        and not (mlp_only and _is_attention(node.get_friendly_name()))
    ]


def calibration_batches(items: Sequence[Tokens], budget: int = CALIBRATION_TOKENS) -> list[Batch]:
    """The items in order, in batches of at most `budget` tokens; a longer item has a batch of its own."""
    batches: list[list[Tokens]] = [[]]
    left = budget
    for item in items:
        if batches[-1] and len(item) > left:
            batches.append([])
            left = budget
        batches[-1].append(item)
        left -= len(item)
    return [Batch.pack(batch) for batch in batches]


def make_names_unique(graph: Model) -> None:
    """Renames nodes that share a name (weights that are used twice): nncf identifies nodes by their names."""
    seen = Counter[str]()
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        if seen[name]:
            node.set_friendly_name(f"{name}#{seen[name]}")
        seen[name] += 1


def _downstream(nodes: Sequence[Node]) -> set[int]:
    """Instance ids of all nodes that depend on these."""
    found: set[int] = set()
    waiting = list(nodes)
    while waiting:
        for output in waiting.pop().outputs():
            for target in output.get_target_inputs():
                node = target.get_node()
                if node.get_instance_id() not in found:
                    found.add(node.get_instance_id())
                    waiting.append(node)
    return found


def _is_attention(name: str) -> bool:
    """Whether a linear layer belongs to attention: in every family its tensor name says so."""
    return any(part in name.lower() for part in ("attention", "attn", "mixer"))


def _feed(batch: Batch) -> dict[str, Array]:
    return dict(zip(INPUT_NAMES, pack_rows(batch).graph_inputs(), strict=True))


@contextmanager
def _progress_bars_on_stderr() -> Iterator[None]:
    """Redirects nncf's progress bars from standard output to standard error, or drops them without a terminal."""
    if sys.stderr.isatty():
        with redirect_stdout(sys.stderr):
            yield
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield


def import_nncf() -> Any:  # noqa: ANN401 - it has no types
    """The module `nncf`. Raises EngineUnavailableError with the command that installs it."""
    os.environ.setdefault("NNCF_CI", "1")  # without it nncf reports each use to Google Analytics
    try:
        import nncf
    except ImportError as fault:
        raise EngineUnavailableError(
            "quantisation on the CPU needs the package nncf, to build an engine only: "
            "pip install 'bei-core[quantize]'; or build without it: quantization_type no_quant"
        ) from fault
    nncf.set_log_level(logging.WARNING)
    return nncf
