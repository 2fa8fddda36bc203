"""Limits on sizes: half of functions <= 10 lines, 90% <= 30, none > 60; files <= 400 lines; tests/data <= 4.5 MB."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = [root for root in ("packages", "model", "scripts", "benchmarks", "tests") if (REPOSITORY / root).is_dir()]


def files(root: str) -> list[Path]:
    return sorted((REPOSITORY / root).rglob("*.py"))


@cache
def functions(root: str) -> dict[str, int]:
    """Number of lines of each function, docstring included, by its path, line and name."""
    found = {}
    for path in files(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                where = f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
                found[where] = node.end_lineno - node.lineno + 1
    return found


@pytest.mark.parametrize("root", ROOTS)
def test_no_function_is_longer_than_60_lines(root: str) -> None:
    assert not {where: lines for where, lines in functions(root).items() if lines > 60}


@pytest.mark.parametrize("root", ROOTS)
def test_nine_functions_of_ten_have_at_most_30_lines_and_half_at_most_10(root: str) -> None:
    lines = sorted(functions(root).values())
    assert sum(n <= 30 for n in lines) >= 0.9 * len(lines)
    assert sum(n <= 10 for n in lines) >= 0.5 * len(lines)


@pytest.mark.parametrize("root", ROOTS)
def test_no_file_is_longer_than_400_lines(root: str) -> None:
    sizes = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines()) for path in files(root)
    }
    assert not {path: lines for path, lines in sizes.items() if lines > 400}


def test_model_py_hands_over_in_at_most_80_lines() -> None:
    model = REPOSITORY / "model" / "model.py"
    if model.is_file():
        assert len(model.read_text(encoding="utf-8").splitlines()) <= 80


def test_the_engine_contract_fits_one_screen() -> None:
    base = REPOSITORY / "packages" / "bei_core" / "engines" / "base.py"
    assert len(base.read_text(encoding="utf-8").splitlines()) <= 95


def test_the_data_of_tests_is_small() -> None:
    sizes = [path.stat().st_size for path in (REPOSITORY / "tests" / "data").rglob("*") if path.is_file()]
    assert len(sizes) <= 300
    assert sum(sizes) <= 4_500_000
