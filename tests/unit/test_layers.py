"""Rooms of `bei_core` have an order: an import goes to a lower room or stays inside its own, inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / "packages"

# Lowest first. The rooms of one line know nothing of each other. A module belongs to the longest name that it starts
# with, so `engines.provider` is a room of its own above the engines that it chooses among.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "bfloat16"),
    ("tasks", "metrics", "logs", "bench", "storage", "models.pooling"),  # the setting `pooling` is made of the table
    ("config", "text"),
    ("checkpoint",),
    ("models",),
    ("engines",),  # what engines have in common: the contract, manifests, calibration, quality
    ("engines.openvino", "engines.torch"),
    ("engines.tensorrt_llm",),  # its models are torch's
    ("engines.provider",),
    ("engines.open",),  # which engine a model gets
    ("serving",),
    ("http",),
    ("jobs", "capacity"),
    ("truss", "serve_ray"),
    ("cli",),
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}

# How many modules of ours one module may import.
MAX_FAN_OUT = 12

# Packages that one room keeps to itself, so that the rest does not come to depend on them.
OWNERS: dict[str, str | tuple[str, ...]] = {
    "openvino": "engines.openvino",
    "tensorrt_llm": "engines.tensorrt_llm._compat",
    "torch": ("engines.torch.", "engines.tensorrt_llm."),
    "tokenizers": "text.",
    "prometheus_client": "metrics",
    "starlette": ("http.", "truss.", "serve_ray"),
    "ray": ("jobs.ray_data", "serve_ray"),
    "backports": "http.codings",
    "compression": "http.codings",
    "uvloop": ("bench.", "http.server."),
    "httptools": ("bench.", "http.server."),
    "yaml": ("config.", "truss."),
    "click": "cli.",
    "simpy": "capacity.",
    "jinja2": "text.sandbox",
    "huggingface_hub": "checkpoint.hub",
    "fsspec": "storage.",
    "opentelemetry": "http.traces",
}


def modules() -> dict[str, Path]:
    """Every module by its name below `bei_core`."""
    found = {}
    for path in sorted((PACKAGES / "bei_core").rglob("*.py")):
        parts = path.relative_to(PACKAGES / "bei_core").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str | None:
    """The room a module belongs to; None if it has no place in `LAYERS`."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LAYER_OF), None)


def imported(source: str) -> Iterator[str]:
    """Full names of what a module imports, wherever in it; `from a import b` is `a.b` where that is a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise AssertionError(f"line {node.lineno}: a relative import; write the full name")
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if name.removeprefix("bei_core.") in MODULES}
            yield from submodules
            if names != submodules:
                yield node.module


def ours(names: Iterable[str]) -> set[str]:
    """The modules of `bei_core` among the names, by their names below it."""
    parts = (name.partition(".") for name in names)
    return {rest for package, _, rest in parts if package == "bei_core"}


@cache
def imported_by(module: str) -> frozenset[str]:
    """Full names of what a module of `bei_core` imports."""
    return frozenset(imported(MODULES[module].read_text(encoding="utf-8")))


def test_every_module_is_in_a_room_and_every_room_has_a_module() -> None:
    rooms = {module: room_of(module) for module in MODULES if module}
    assert not [module for module, room in rooms.items() if room is None]
    assert set(rooms.values()) == LAYER_OF.keys()
    assert len(LAYER_OF) == sum(map(len, LAYERS)), "a room is in two layers"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_room_and_from_lower_ones(module: str) -> None:
    room = room_of(module)
    layer = LAYER_OF[room] if room else 0
    above = [
        name for name in ours(imported_by(module)) if room_of(name) != room and LAYER_OF[str(room_of(name))] >= layer
    ]
    assert not above, f"{module} imports {', '.join(sorted(above))}, which is not in a lower room"


def test_no_modules_import_each_other_in_a_circle() -> None:
    list(
        TopologicalSorter({module: ours(imported_by(module)) for module in MODULES}).static_order()
    )  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_few_others(module: str) -> None:
    assert len(ours(imported_by(module))) <= MAX_FAN_OUT


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("bench")])
def test_the_load_generator_knows_the_errors_and_nothing_else(module: str) -> None:
    assert {name for name in ours(imported_by(module)) if not name.startswith("bench")} <= {"errors"}


@pytest.mark.parametrize("module", MODULES)
def test_a_package_stays_with_the_room_that_owns_it(module: str) -> None:
    packages = {name.split(".")[0] for name in imported_by(module)}
    strays = {package for package in packages & OWNERS.keys() if not module.startswith(OWNERS[package])}
    assert not strays


@pytest.mark.parametrize(
    "module",
    [
        "engines.open",
        "engines.base",
        "engines.batch",
        "engines.manifest",
        "engines.build",
        "engines.cache",
        "engines.registry",
        "serving.runner",
        "serving.service",
        "serving.queue",
        "tasks",
        "cli.main",
    ],
)
def test_heavy_engines_are_imported_inside_their_creator(module: str) -> None:
    body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    top = ast.unparse([node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))])  # type: ignore[arg-type]
    assert "openvino" not in top
    assert "tensorrt" not in top


def test_without_traces_their_package_is_not_imported() -> None:
    body = ast.parse(MODULES["http.traces"].read_text(encoding="utf-8")).body
    always = [node for node in body if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If))]
    assert "opentelemetry" not in {name.split(".")[0] for node in always for name in imported(ast.unparse(node))}


def test_an_import_inside_a_function_or_of_a_submodule_counts() -> None:
    source = "from bei_core import metrics\ndef f():\n    from bei_core.http.server import serve\n"
    assert ours(imported(source)) == {"metrics", "http.server"}
    with pytest.raises(AssertionError, match="relative"):
        ours(imported("from . import metrics"))
