"""Renders a Jinja template of a checkpoint, which is not trusted, in a process of its own with limits.

The process has Jinja's sandbox and an empty environment. It may open no files, sockets or processes, and Linux limits
its processor time and its memory. Template and values come as JSON, and the texts go back as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import msgspec

from bei_core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from jinja2 import Template

Values: TypeAlias = Mapping[str, Any]

MAX_SOURCE_BYTES = 1 << 17  # published templates have up to 20,000
_MAX_CHARS = 1 << 16  # of a rendered text
_CPU_S, _WALL_S, _MEMORY_BYTES = 2, 60, 1 << 29
_ENVIRONMENT = ("LD_LIBRARY_PATH", "PYTHONHOME")  # what Python may need to start

# Filters of Jinja that read a text without its methods, so that Content would not notice it.
_LEFT_OUT = {"float", "int", "striptags", "title", "urlize", "wordcount"}

_PROGRAM = "import sys; sys.path[:] = {path!r}; from bei_core.text.sandbox import main; main()"


class Rendered(NamedTuple):
    """What a template made of one set of values: a text, or in `fault` why there is none."""

    text: str
    fault: str = ""


class DependentError(BaseException):
    """A template used a text for more than to put it out. Not an Exception, because Jinja's tests catch those."""


class Content(str):
    """A text that a template may put out, concatenate, trim, and test for being empty.

    Every other method raises DependentError, because the result of the template could then depend on the text.
    """

    __slots__ = ()

    def __add__(self, other: str) -> Content:
        return Content(str.__add__(self, other))

    def __radd__(self, other: str) -> Content:
        return Content(str.__add__(other, self))

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return str.__len__(self) > 0

    def strip(self, chars: str | None = None, /) -> Content:
        """Returns the text without white space at both ends. Raises DependentError for other characters."""
        if chars is not None:
            raise _dependent("strip")
        return Content(str.strip(self))


def _dependent(name: str) -> DependentError:
    return DependentError(f"its result depends on the text of a message, of which it asks for {name}")


def _refuse(name: str) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        raise _dependent(name)

    return method


_ALLOWED = {"__new__", "__getattribute__", "__doc__", "__getnewargs__", *vars(Content)}
for _name in vars(str).keys() - _ALLOWED:
    setattr(Content, _name, _refuse(_name.strip("_")))


def render(source: str, values: Sequence[Values]) -> list[Rendered]:
    """Returns what a template makes of each of `values`. The texts under `content` in `messages` become Content.

    Raises UnsupportedModelError if the process needs more than its limits, or ends in another way.
    """
    program = _PROGRAM.format(path=[folder for folder in sys.path if isinstance(folder, str)])
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    request = json.dumps({"source": source, "values": values}).encode()
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program], input=request, capture_output=True, env=environment, timeout=_WALL_S
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise UnsupportedModelError(f"cannot be rendered: {fault!r}"[:200]) from None
    if done.returncode < 0:
        raise UnsupportedModelError(
            f"cannot be rendered in {_CPU_S} s of processor time and {_MEMORY_BYTES >> 20} MiB of memory"
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines() or [""]
        raise UnsupportedModelError(f"cannot be rendered: the process ended with {done.returncode}, {_plain(said[-1])}")
    return msgspec.json.decode(done.stdout, type=list[Rendered])


def main() -> None:
    """The program of the process: reads a template and its values from stdin, writes a list of Rendered to stdout."""
    import resource

    request = json.loads(sys.stdin.buffer.read())
    compile_template = _compiler()
    for limit, value in (
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        template = compile_template(request["source"])
        rendered = [_rendered(template, values) for values in request["values"]]
    except Exception as fault:
        rendered = [_fault(fault)] * len(request["values"])
    sys.stdout.write(json.dumps(rendered))


def _rendered(template: Template, values: dict[str, Any]) -> Rendered:
    """Returns what the template makes of the values."""
    for message in values["messages"]:
        _mark(message)
    try:
        text = template.render(**values)
    except (Exception, DependentError) as fault:
        return _fault(fault)
    return Rendered(text) if len(text) <= _MAX_CHARS else Rendered("", f"it renders more than {_MAX_CHARS} characters")


def _mark(message: dict[str, Any]) -> None:
    """Makes Content of a message's text, which is its `content`, or the `text` of each part of it."""
    if isinstance(message["content"], str):
        message["content"] = Content(message["content"])
    else:
        message["content"] = [{**part, "text": Content(part["text"])} for part in message["content"]]


def _fault(fault: BaseException) -> Rendered:
    kind = "" if isinstance(fault, DependentError) else f"{type(fault).__name__}: "
    return Rendered("", kind + _plain(str(fault)))


def _plain(text: str) -> str:
    """Returns at most 200 characters of a text in one line."""
    return "".join(c if c.isprintable() else " " for c in text[:200])


def _compiler() -> Callable[[str], Template]:
    """Returns the function that compiles a chat template with the filters and functions that transformers gives it.

    Source: transformers 5.23, `utils/chat_template_utils.py`.
    """
    import encodings.unicode_escape  # noqa: F401 - with `debug`, what Jinja imports later, when no file may be opened

    from jinja2 import TemplateError, debug  # noqa: F401
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(_: str) -> NoReturn:
        raise TemplateError("it puts out the date, which would stay that of the start")

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters = {name: each for name, each in environment.filters.items() if name not in _LEFT_OUT}
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string
