"""Every module has a layer, and imports from lower ones only, inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / "packages"

# Lowest first; the modules of one line know nothing of each other. A new module needs a place here.
LAYERS: tuple[tuple[str, ...], ...] = (
    # 0: knows nothing of ours
    ("bei_core", "bei_core.errors", "bei_core.foreign", "bei_core.trt_llm"),
    ("bei_core.engines", "bei_core.engines.openvino", "bei_core.http"),  # empty: where a package is imported from
    ("bei_core.objects", "bei_core.truss_files", "bei_core.disk", "bei_core.marks"),
    # The load generator stands apart: it may know the errors, and nothing else knows it but the command line.
    ("bei_core.bench.pace", "bei_core.bench.observe", "bei_core.bench.workload", "bei_core.bench.report"),
    ("bei_core.bench.client",),
    ("bei_core.bench.measure",),
    ("bei_core.bench",),
    # 1
    ("bei_core.config", "bei_core.tasks", "bei_core.metrics", "bei_core.logs"),
    # 2, where checkpoints have an order of their own
    ("bei_core.checkpoint.files", "bei_core.checkpoint.progress"),
    ("bei_core.checkpoint.tensors", "bei_core.checkpoint.transfer"),
    ("bei_core.checkpoint.folder",),
    ("bei_core.checkpoint.place", "bei_core.checkpoint.hub", "bei_core.checkpoint.archives"),
    ("bei_core.checkpoint.buckets", "bei_core.checkpoint.remote"),
    (
        "bei_core.checkpoint",
        "bei_core.batch",
        "bei_core.pending",
        "bei_core.templates",
        "bei_core.turns",
        "bei_core.ner",
    ),
    # 3
    ("bei_core.spec", "bei_core.tokens"),
    # 4
    ("bei_core.engines.calibration", "bei_core.engines.quality", "bei_core.engines.choice"),
    ("bei_core.engines.base", "bei_core.engines.manifest"),
    ("bei_core.engines.store",),
    ("bei_core.engines.remote",),
    ("bei_core.engines.families", "bei_core.engines.rope"),
    # 5, with an order of its own
    ("bei_core.engines.openvino.ops", "bei_core.engines.openvino.rows", "bei_core.engines.openvino.weights"),
    ("bei_core.engines.openvino.rope", "bei_core.engines.openvino.pooling"),
    ("bei_core.engines.openvino.blocks",),
    ("bei_core.engines.openvino.bert", "bei_core.engines.openvino.rotary", "bei_core.engines.openvino.deberta"),
    ("bei_core.engines.openvino.decoders", "bei_core.engines.openvino.heads"),
    ("bei_core.engines.openvino.architectures",),
    ("bei_core.engines.openvino.graph",),
    ("bei_core.engines.openvino.convolve",),
    ("bei_core.engines.openvino.engine", "bei_core.engines.openvino.smooth"),
    ("bei_core.engines.openvino.integers",),
    ("bei_core.engines.openvino.quantize",),
    ("bei_core.engines.openvino.build",),
    ("bei_core.engines.tensorrt_llm", "bei_core.engines.tensorrt_llm.models"),  # empty
    (
        "bei_core.engines.tensorrt_llm._compat",
        "bei_core.engines.tensorrt_llm.packing",
        "bei_core.engines.tensorrt_llm.tensorfile",
    ),
    ("bei_core.engines.tensorrt_llm.artifact",),
    ("bei_core.engines.tensorrt_llm.models.layers", "bei_core.engines.tensorrt_llm.models.pooling"),
    ("bei_core.engines.tensorrt_llm.models.attention", "bei_core.engines.tensorrt_llm.models.top"),
    ("bei_core.engines.tensorrt_llm.models.bert", "bei_core.engines.tensorrt_llm.models.decoder"),
    ("bei_core.engines.tensorrt_llm.models.classes", "bei_core.engines.tensorrt_llm.quantize"),
    ("bei_core.engines.tensorrt_llm.build",),
    ("bei_core.engines.tensorrt_llm.engine",),
    # 6
    ("bei_core.engines.obtain",),
    ("bei_core.engines.open", "bei_core.runner", "bei_core.engines_cli"),
    # 7
    ("bei_core.service",),
    # 8, with an order of its own
    ("bei_core.http.negotiation",),
    ("bei_core.http.responses", "bei_core.http.requests"),
    ("bei_core.http.scored", "bei_core.http.tokenwise"),
    ("bei_core.http.pipelines", "bei_core.http.shapes"),
    ("bei_core.http.routes",),
    ("bei_core.http.openapi", "bei_core.http.traces"),
    ("bei_core.http.app",),
    ("bei_core.http.server", "bei_core.http.truss_routes"),
    # 9
    ("bei_core.truss_init",),
    ("bei_core.truss_cli",),
    ("bei_core.cli",),
)
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}

# Packages that one part of ours keeps to itself, so that the rest does not come to depend on it.
OWNERS: dict[str, str | tuple[str, ...]] = {
    "openvino": "bei_core.engines.openvino.",
    "tensorrt_llm": "bei_core.engines.tensorrt_llm._compat",
    "torch": "bei_core.engines.tensorrt_llm.",
    "transformers": "bei_core.engines.tensorrt_llm.quantize",
    "modelopt": "bei_core.engines.tensorrt_llm.quantize",
    "tokenizers": "bei_core.tokens",
    "prometheus_client": "bei_core.metrics",
    "starlette": "bei_core.http.",
    "backports": "bei_core.http.negotiation",
    "compression": "bei_core.http.negotiation",
    "uvicorn": "bei_core.http.server",
    "httptools": "bei_core.bench.",
    "yaml": ("bei_core.truss_files", "bei_core.truss_init"),
    "typer": ("bei_core.cli", "bei_core.engines_cli", "bei_core.truss_cli"),
    "huggingface_hub": "bei_core.checkpoint.hub",
    "fsspec": "bei_core.objects",
    "opentelemetry": "bei_core.http.traces",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGES.rglob("*.py")):
        parts = path.relative_to(PACKAGES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(source: str) -> Iterator[str]:
    """Full names of what a module imports, wherever in it; `from a import b` is `a.b` where that is a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise AssertionError(f"line {node.lineno}: a relative import; write the full name")
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & MODULES.keys()
            yield from submodules
            if names != submodules:
                yield node.module


def ours(source: str) -> set[str]:
    return {name for name in imported(source) if name.split(".")[0] == "bei_core"}


def test_every_module_has_a_layer_and_every_entry_a_module() -> None:
    assert LAYER_OF.keys() == MODULES.keys()
    assert len(LAYER_OF) == sum(map(len, LAYERS)), "a module is in two layers"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_layers_only(module: str) -> None:
    layer = LAYER_OF.get(module, 0)  # one without a place may import nothing, and nothing may import it
    above = {name for name in ours(MODULES[module].read_text()) if LAYER_OF.get(name, len(LAYERS)) >= layer}
    assert not above, f"{module} imports {', '.join(sorted(above))}, which is not below it"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("bei_core.bench")])
def test_the_load_generator_knows_the_errors_and_nothing_else(module: str) -> None:
    others = {name for name in ours(MODULES[module].read_text()) if not name.startswith("bei_core.bench")}
    assert others <= {"bei_core.errors"}


@pytest.mark.parametrize("module", MODULES)
def test_a_package_stays_with_the_part_that_owns_it(module: str) -> None:
    packages = {name.split(".")[0] for name in imported(MODULES[module].read_text())}
    strays = {package for package in packages & OWNERS.keys() if not module.startswith(OWNERS[package])}
    assert not strays


@pytest.mark.parametrize(
    "module",
    [
        "engines.open",
        "engines.base",
        "engines.manifest",
        "engines.store",
        "engines.choice",
        "runner",
        "service",
        "batch",
        "pending",
        "tasks",
        "cli",
    ],
)
def test_heavy_engines_are_imported_inside_their_creator(module: str) -> None:
    body = ast.parse(MODULES[f"bei_core.{module}"].read_text()).body
    top = ast.unparse([node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))])  # type: ignore[arg-type]
    assert "openvino" not in top
    assert "tensorrt" not in top


def test_without_traces_their_package_is_not_imported() -> None:
    body = ast.parse(MODULES["bei_core.http.traces"].read_text()).body
    always = [node for node in body if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If))]
    assert "opentelemetry" not in {name.split(".")[0] for node in always for name in imported(ast.unparse(node))}


def test_an_import_inside_a_function_or_of_a_submodule_counts() -> None:
    source = "from bei_core import metrics\ndef f():\n    from bei_core.http.server import serve\n"
    assert ours(source) == {"bei_core.metrics", "bei_core.http.server"}
    with pytest.raises(AssertionError, match="relative"):
        ours("from . import metrics")
