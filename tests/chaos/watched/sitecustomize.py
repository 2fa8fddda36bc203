"""Python imports this module at its start. It logs each connection, each name lookup and each written file.

The lines go to the file that WATCH_LOG names.
"""

import os
import sys

_LOG = os.environ["WATCH_LOG"]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_fd = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        _write(event, arguments[-2] if event == "socket.getaddrinfo" and len(arguments) > 5 else arguments[:2])
    elif event == "open":
        path, _, flags = arguments
        is_written = isinstance(flags, int) and flags & _WRITES and path not in {_LOG, "/dev/null"}
        if is_written and not isinstance(path, int):
            _write("write", os.path.abspath(os.fspath(path)))  # type: ignore[call-overload]
    elif event == "os.mkdir":
        _write("write", os.path.abspath(os.fspath(arguments[0])))  # type: ignore[call-overload]


def _write(event: str, what: object) -> None:
    os.write(_fd, f"{event} {what}\n".encode(errors="replace"))


sys.addaudithook(_watch)
