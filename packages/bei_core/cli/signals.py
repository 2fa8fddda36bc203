"""SIGTERM while a command runs, or before a server is ready."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGTERM_STATUS = 128 + signal.SIGTERM  # 143, which shells show for a process that the signal ended

_UNWIND_S = 2.0  # for the main thread to remove its temporary files


@contextmanager
def interrupted_by_sigterm() -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt inside the block on SIGTERM, as on Ctrl-C; yields an event that is set then.

    Without a handler, Linux ignores the signal for PID 1, which `bei` is in a container. If the main thread does not
    leave the block within 2 s, because it is in a library or waits for a thread, the process says so and ends with
    SIGTERM_STATUS. A handler that is set in the block, such as the server's, replaces all this.
    """
    told, over = threading.Event(), threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def handle(_number: int, _frame: object) -> None:
        told.set()
        raise KeyboardInterrupt

    def watch() -> None:
        while number := os.read(reader, 1):  # Python writes a byte at once, but calls `handle` on the main thread only
            is_ours = number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is handle
            if is_ours and not over.wait(_UNWIND_S):
                _end_now()
        os.close(reader)

    before, wakeup = signal.signal(signal.SIGTERM, handle), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="bei-sigterm", daemon=True).start()
    try:
        yield told
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        os.close(writer)


def _end_now() -> None:
    """Writes why, if standard error takes it at once, and ends the process."""
    try:
        if select.select((), (2,), (), 0)[1]:
            os.write(2, _last_line())
    finally:
        os._exit(SIGTERM_STATUS)


def _last_line() -> bytes:
    """The last line of the log. The main thread may hold the locks of logging and of imports, so neither is used."""
    said = "error: ended by SIGTERM, which the main thread did not obey in time"
    logs = sys.modules.get("bei_core.logs")
    if logs is not None and logs.is_json():
        import logging  # which `logs` has imported, so this takes no lock

        record = logging.makeLogRecord({"name": __name__, "levelname": "ERROR", "msg": said})
        said = logs.JsonFormatter().format(record)
    return f"{said}\n".encode()
