"""The tree in the docstring is that of the classes, and no permanent error has a status that clients retry."""

from __future__ import annotations

import inspect
import re

import pytest

from bei_core import errors
from bei_core.bench.client import LoadError
from bei_core.errors import BeiError, DeadlineExceededError, OverloadedError, RequestError, StartError, UnhealthyError
from bei_core.storage.errors import DriverMissingError, TransientError

# `    │   ├── Empty                400  empty input`: the depth, the name and perhaps the status.
LINE = re.compile(r"^ {4}((?:[│ ] {3})*)(?:[├└]── )?(\w+)(?: +(\d{3})(?= |$))?")

PASSING = {OverloadedError, UnhealthyError, DeadlineExceededError}


def classes() -> list[type[BeiError]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, BeiError)]
    return [value for value in found if value.__module__ == errors.__name__] + [
        DriverMissingError,
        TransientError,
        LoadError,
    ]


def leaves() -> list[type[RequestError]]:
    return [value for value in classes() if issubclass(value, RequestError) and value is not RequestError]


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Of each class in the docstring's tree, its parent and its status."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in inspect.getdoc(errors).split("\n\n")[1].splitlines():  # type: ignore[union-attr]
        match = LINE.match(f"    {line.removeprefix('    ')}")
        assert match is not None, line
        indent, name, status = match.groups()
        depth = len(indent) // 4 + ("── " in line)
        path[depth:] = [name]
        tree[name] = (path[depth - 1] if depth else None, int(status) if status else None)
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    parents = {value.__name__: value.__mro__[1].__name__ for value in classes() if value is not BeiError}
    assert {name: parent for name, (parent, _) in drawn().items()} == {"BeiError": None, **parents}


def test_the_statuses_in_the_docstring_are_those_of_the_classes() -> None:
    statuses = {name: status for name, (_, status) in drawn().items() if status is not None}
    assert statuses == {value.__name__: value.status for value in leaves()}


@pytest.mark.parametrize("error", [error for error in leaves() if error not in PASSING])
def test_a_permanent_fault_has_no_status_that_is_retried(error: type[RequestError]) -> None:
    assert error.status not in {408, 409, 429}
    assert 400 <= error.status < 500


@pytest.mark.parametrize("error", [OverloadedError, UnhealthyError, DeadlineExceededError])
def test_a_passing_fault_has_a_status_that_is_retried(error: type[RequestError]) -> None:
    assert error.status == 429 or error.status >= 500


@pytest.mark.parametrize("error", leaves())
def test_a_request_error_keeps_its_text_and_field(error: type[RequestError]) -> None:
    fault: RequestError = OverloadedError("what happened", cause="queue_wait")
    if error is not OverloadedError:
        fault = error("what happened", param="inputs")
    assert str(fault) == fault.message == "what happened"
    assert fault.param == (None if error is OverloadedError else "inputs")
    assert fault.kind


def test_an_operators_error_is_no_reply() -> None:
    assert not issubclass(StartError, RequestError)
    assert OverloadedError("later", cause="queue_wait", retry_after_s=3).retry_after_s == 3
