"""Renders a Jinja template of a checkpoint, which is not trusted, in a process of its own with limits.

The process has Jinja's sandbox and an empty environment, and Linux limits it (`limit_process`). Template and values
come as JSON, and the texts go back as JSON, of which the parent reads a limited number of bytes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from threading import Timer
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias, cast

import msgspec

from bei_core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from jinja2.parser import Parser
    from jinja2.runtime import Context

Values: TypeAlias = Mapping[str, Any]

MAX_SOURCE_BYTES = 1 << 17  # published templates have up to 20,000
_MAX_CHARS = 1 << 17  # of a rendered text
_MAX_OUTPUT_BYTES = 1 << 22  # of all rendered texts
_CPU_S, _WALL_S, _MEMORY_BYTES = 2, 60, 1 << 29
_ENVIRONMENT = ("LD_LIBRARY_PATH", "PYTHONHOME")  # what Python may need to start

# Filters of Jinja that read a text without its methods, so that Content would not notice it. Those that templates use
# for other values than texts of messages refuse Content; the others are left out.
_LEFT_OUT = {"float", "int", "striptags", "title", "urlize", "wordcount"}
_REFUSE_CONTENT = ("e", "escape", "forceescape", "format", "replace", "safe", "tojson", "xmlattr")

# The signals of a process that used up its processor time or its stack.
_OF_THE_TEMPLATE = {signal.SIGXCPU, signal.SIGSEGV}

_PROGRAM = "import sys; sys.path[:] = {path!r}; from bei_core.text.sandbox import main; main()"


class Rendered(NamedTuple):
    """What a template made of one set of values: a text, or in `fault` why there is none."""

    text: str
    fault: str = ""


class SandboxError(UnsupportedModelError):
    """The process that renders failed, which says nothing about the template."""


class DependentError(BaseException):
    """A template used a text for more than to put it out. Not an Exception, because Jinja's tests catch those."""


def _dependent(name: str) -> DependentError:
    return DependentError(f"its result depends on the text of a message, of which it asks for {name}")


def _refuse(name: str) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        raise _dependent(name)

    return method


class Content(str):
    """A text that a template may put out, concatenate, trim, and test for being empty or no text.

    Every other method raises DependentError, because the result of the template could then depend on the text.
    """

    __slots__ = ()
    __hash__ = _refuse("hash")

    def __add__(self, other: str) -> Content:
        return Content(str.__add__(self, other))

    def __radd__(self, other: str) -> Content:
        return Content(str.__add__(other, self))

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return str.__len__(self) > 0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and (isinstance(other, Content) or other):
            raise _dependent("eq")
        return isinstance(other, str) and not self

    def __ne__(self, other: object) -> bool:
        return not self == other

    def strip(self, chars: str | None = None, /) -> Content:
        """Returns the text without white space at both ends. Raises DependentError for other characters."""
        if chars is not None:
            raise _dependent("strip")
        return Content(str.strip(self))


_ALLOWED = {"__new__", "__getattribute__", "__doc__", "__getnewargs__", *vars(Content)}
for _name in vars(str).keys() - _ALLOWED:
    setattr(Content, _name, _refuse(_name.strip("_")))


def _holds_content(value: object) -> bool:
    """Whether a value is Content, or a list or an object of JSON with Content in it."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, Content) or (isinstance(value, list | tuple) and any(map(_holds_content, value)))


def render(source: str, values: Sequence[Values]) -> list[Rendered]:
    """Returns what a template makes of each of `values`. The texts under `content` in `messages` become Content.

    Raises UnsupportedModelError if the template needs more than the limits, SandboxError if the process fails in
    another way.
    """
    status, output = _run(json.dumps({"source": source, "values": values}).encode())
    if len(output) > _MAX_OUTPUT_BYTES:
        raise UnsupportedModelError(f"cannot be rendered: it puts out more than {_MAX_OUTPUT_BYTES} bytes")
    last = (output.splitlines() or [b""])[-1]  # after what the libraries may have written
    if status < 0:
        name = signal.Signals(-status).name
        if -status in _OF_THE_TEMPLATE:
            raise UnsupportedModelError(
                f"cannot be rendered in {_CPU_S} s of processor time and {_MEMORY_BYTES >> 20} MiB of memory ({name})"
            )
        raise SandboxError(f"cannot be rendered: the process was ended by {name}, after at most {_WALL_S} s")
    if status:
        said = _plain(last.decode(errors="replace"))
        raise SandboxError(f"cannot be rendered: the process ended with {status}, {said}")
    try:
        return msgspec.json.decode(last, type=list[Rendered])
    except ValueError as fault:
        raise SandboxError(f"cannot be rendered: the process did not answer: {_plain(str(fault))}") from None


def _run(request: bytes) -> tuple[int, bytes]:
    """Returns the exit status of the process and what it wrote, of which no more than one byte over the limit is read.

    Raises SandboxError if it cannot be started.
    """
    program = _PROGRAM.format(path=[folder for folder in sys.path if isinstance(folder, str)])
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=environment
        )
    except OSError as fault:
        raise SandboxError(f"cannot be rendered: {fault!r}"[:200]) from None
    timer = Timer(_WALL_S, process.kill)
    timer.start()
    with process:
        with suppress(BrokenPipeError), process.stdin as stdin:  # type: ignore[union-attr]
            stdin.write(request)  # fails if the process has ended, and its exit status says why
        output = process.stdout.read(_MAX_OUTPUT_BYTES + 1)  # type: ignore[union-attr]
        if len(output) > _MAX_OUTPUT_BYTES:
            process.kill()
    timer.cancel()
    return process.returncode, output


def main() -> None:
    """The program of the process: reads a template and its values from stdin, writes a list of Rendered to stdout."""
    request = json.loads(sys.stdin.buffer.read())
    compile_template = _compiler()
    limit_process()
    try:
        template = compile_template(request["source"])
        rendered = [_rendered(template, values) for values in request["values"]]
    except Exception as fault:
        rendered = [_fault(fault)] * len(request["values"])
    sys.stdout.buffer.write(json.dumps(rendered, ensure_ascii=False).encode())


def limit_process() -> None:
    """Limits this process: 2 s of processor time, 512 MiB of memory, no new file descriptor and no new process.

    Linux lets the user root start processes all the same. Without a descriptor, files cannot be read or written, but a
    process that escaped Jinja's sandbox could still rename and delete files and signal processes of its user.
    """
    import resource

    for limit, soft, hard in (
        (resource.RLIMIT_CPU, _CPU_S, _CPU_S + 1),  # SIGXCPU at the first one, which tells it from other signals
        (resource.RLIMIT_AS, _MEMORY_BYTES, _MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(limit, (soft, hard))


def _rendered(template: Template, values: dict[str, Any]) -> Rendered:
    """Returns what the template makes of the values."""
    for message in values["messages"]:
        _mark(message)
    try:
        text = template.render(**values)
        text.encode()  # a lone surrogate cannot be put out
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

    from jinja2 import TemplateError, debug, nodes  # noqa: F401
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(_: str) -> NoReturn:
        raise TemplateError("it puts out the date, which would stay that of the start")

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    class Generation(Extension):
        """Renders the body of `{% generation %}`, which marks what a model wrote."""

        tags = {"generation"}  # noqa: RUF012 - as in Jinja

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses the text of a message as an argument of another text's method, which would read it."""

        def call(self, context: Context, method: Any, /, *args: Any, **options: Any) -> Any:  # noqa: ANN401
            if isinstance(getattr(method, "__self__", None), str) and _holds_content([*args, *options.values()]):
                raise _dependent(method.__name__)
            return super().call(context, method, *args, **options)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.filters = {name: each for name, each in environment.filters.items() if name not in _LEFT_OUT}
    environment.filters |= {"tojson": tojson, "join": _joining(environment)}
    environment.filters |= {name: _without_content(name, environment.filters[name]) for name in _REFUSE_CONTENT}
    for name in ("iterable", "sequence"):
        environment.tests[name] = _true_for_texts(cast("Callable[..., Any]", environment.tests[name]))
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string


def _without_content(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that raises DependentError for the text of a message."""

    @wraps(plain)  # also Jinja's mark of its first argument
    def refusing(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        if _holds_content([*args, *options.values()]):
            raise _dependent(name)
        return plain(*args, **options)

    return refusing


def _joining(environment: Environment) -> Callable[..., str]:
    """Returns the filter join, whose result is Content if one of the texts is."""
    from jinja2.filters import make_attrgetter

    def join(values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        text = ""
        for place, value in enumerate(
            values if attribute is None else map(make_attrgetter(environment, attribute), values)
        ):
            text = (text + d if place else text) + str(value)
        return text

    return join


def _true_for_texts(plain: Callable[..., Any]) -> Callable[[object], bool]:
    """Returns a test that is also true for the text of a message, which it does not read."""
    return lambda value: isinstance(value, Content) or bool(plain(value))
