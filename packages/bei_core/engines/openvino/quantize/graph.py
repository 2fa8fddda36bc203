"""A graph in f32 to one whose transformer multiplies int8 by int8, by nncf's post-training quantisation.

Quantised are the products of the transformer's layers with their weights, which are nearly all of the work; embeddings,
norms, softmax, attention's own products, pooling, modules and heads stay as they are (docs/decisions/010-int8.md).
`smooth` has moved outliers of activations into weights before, and `integers` makes them fit every processor after.
nncf is needed to build and never to serve.
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
from bei_core.engines.openvino.packing import lay_out
from bei_core.engines.openvino.quantize.integers import finish
from bei_core.engines.openvino.quantize.smooth import ALPHAS, smooth
from bei_core.errors import EngineUnavailableError, UnsupportedModelError
from bei_core.tasks import Tokens

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

# Tokens of a batch that ranges are measured on. nncf takes the mean over batches of each one's largest value.
CALIBRATION_TOKENS = 512

_PLUMBING = frozenset({"Parameter", "Constant", "Result"})


def quantize(graph: Model, batches: Sequence[Batch], *, alpha: float | None, mlp_only: bool) -> Model:
    """The graph with int8 products, their ranges those of the batches; `graph` itself is used up.

    `alpha` is SmoothQuant's, None: what suits each product. Raises EngineUnavailableError where nncf is not installed.
    """
    nncf = import_nncf()
    unique_names(graph)
    nodes = products(graph, mlp_only=mlp_only)
    if not nodes:
        raise UnsupportedModelError("the model has no products to quantise")
    smoothed = smooth(graph, nodes, batches, ALPHAS if alpha is None else (alpha,))
    worst, seen = max(smoothed.items(), key=lambda item: item[1].error)
    log.info("int8 for %d products; %s loses most, %.2g of its output", len(smoothed), worst, seen.error**0.5)
    model = _quantized(nncf, graph, batches, set(smoothed))
    finish(model, graph, smoothed)
    return model


def _quantized(nncf: Any, graph: Model, batches: Sequence[Batch], chosen: set[str]) -> Model:  # noqa: ANN401
    matmuls = [node.get_friendly_name() for node in graph.get_ops() if node.get_type_name() == "MatMul"]
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.DISABLE,  # `finish` does it
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),  # done already
    )
    ignored = nncf.IgnoredScope(
        names=[name for name in matmuls if name not in chosen],
        types=sorted({node.get_type_name() for node in graph.get_ops()} - {"MatMul"} - _PLUMBING),
    )
    with _progress_apart():
        return nncf.quantize(
            graph,
            nncf.Dataset(list(batches), _feed),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=ignored,
            advanced_parameters=advanced,
        )


def products(graph: Model, *, mlp_only: bool = False) -> list[Node]:
    """The transformer's products of activations with weights; without those of attention where `mlp_only`."""
    nodes = graph.get_ordered_ops()
    end = next(node for node in nodes if node.get_friendly_name() == TOKEN_VECTORS)
    computed = _below([node for node in nodes if node.get_type_name() == "Parameter"])
    after = _below([end])
    return [
        node
        for node in nodes
        if node.get_type_name() == "MatMul"
        and node.input_value(1).get_node().get_type_name() == "Constant"
        and node.get_instance_id() in computed - after
        and not (mlp_only and _is_attention(node.get_friendly_name()))
    ]


def calibration_batches(items: Sequence[Tokens], budget: int = CALIBRATION_TOKENS) -> list[Batch]:
    """The items in their order, packed as they are when served: as many in a batch as the budget of tokens allows."""
    batches: list[list[Tokens]] = [[]]
    room = budget
    for item in items:
        if batches[-1] and len(item) > room:
            batches.append([])
            room = budget
        batches[-1].append(item)
        room -= len(item)
    return [Batch.pack(batch) for batch in batches]


def unique_names(graph: Model) -> None:
    """Names nodes that share a name apart: nncf tells nodes by it, and some weights are used twice."""
    seen = Counter[str]()
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        if seen[name]:
            node.set_friendly_name(f"{name}#{seen[name]}")
        seen[name] += 1


def _below(nodes: Sequence[Node]) -> set[int]:
    """Ids of all nodes that depend on these."""
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
    """Whether a product's weights are of attention; every family says so in their names."""
    return "attention" in name or "attn" in name


def _feed(batch: Batch) -> dict[str, Array]:
    return dict(zip(INPUT_NAMES, lay_out(batch).arrays(), strict=True))


@contextmanager
def _progress_apart() -> Iterator[None]:
    """Progress bars, which go to standard output otherwise, on a terminal's standard error; none without a terminal."""
    if sys.stderr.isatty():
        with redirect_stdout(sys.stderr):
            yield
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield


def import_nncf() -> Any:  # noqa: ANN401 - it has no types
    """The package. Raises EngineUnavailableError saying how to install it."""
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it reports each use to Google Analytics
    try:
        import nncf
    except ImportError as fault:
        raise EngineUnavailableError(
            "quantisation on the CPU needs the package nncf, to build an engine only: "
            "pip install 'bei-core[quantize]'; or build without it: quantization_type no_quant"
        ) from fault
    nncf.set_log_level(logging.WARNING)
    return nncf
