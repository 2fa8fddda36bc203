"""The sockets that the server listens on, and the limit of open files."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
from dataclasses import dataclass, field
from pathlib import Path

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError
from bei_core.http.limits import MAX_HEALTH_CONNECTIONS, MAX_REFUSED_CONNECTIONS, RESERVED_FILES

log = logging.getLogger(__name__)

_MIN_CONNECTIONS = 16
_MIN_FILES = 8  # other than connections, that are opened later

_IN_USE = "{} is in use by another process; stop it, or choose another port"
_REASONS = {
    errno.EADDRINUSE: _IN_USE,
    errno.EACCES: "this user may not listen on {}; choose a port from 1024 on, or another path",
    errno.EADDRNOTAVAIL: "{} is not an address of this machine; set hostname to one, or to 0.0.0.0 for all",
}


@dataclass(slots=True)
class Sockets:
    """Bound sockets that do not listen yet; until they do, the operating system refuses clients."""

    main: list[socket.socket] = field(default_factory=list)
    health: list[socket.socket] = field(default_factory=list)  # for probes and metrics only
    path: Path | None = None  # path of the unix socket, until it is deleted

    def unlink(self) -> None:
        """Deletes the file of the unix socket, once: as soon as it does not listen, another server may put its own."""
        path, self.path = self.path, None
        if path is not None:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes all sockets, and deletes the file of the unix socket."""
        self.unlink()
        for sock in (*self.main, *self.health):
            sock.close()


def bind(settings: Settings) -> Sockets:
    """Binds sockets to the addresses in the settings; also raises the limit of open files as far as allowed.

    Call it before an engine is built, so that a port in use is reported at once. Raises ConfigError.
    """
    raise_file_limit()
    sockets = Sockets()
    try:
        sockets.main += _bind_port(settings.hostname, settings.port)
        if settings.health_port is not None:
            sockets.health += _bind_port(settings.hostname, settings.health_port)
        if settings.uds_path is not None:
            sockets.main.append(_bind_path(settings.uds_path))
            sockets.path = settings.uds_path
    except ConfigError:
        sockets.close()
        raise
    return sockets


def name_of(sock: socket.socket) -> str:
    """Returns the address of a bound socket as a URL."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def raise_file_limit() -> int:
    """Raises the soft limit on open files to the hard one, and returns it.

    Raises ConfigError if the files that are open now leave less than 16 connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS does not accept an infinite limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < (needed := _num_open_files() + _MIN_CONNECTIONS + _MIN_FILES):
        raise ConfigError(f"this process may open {limit} files and needs {needed}; raise the limit with `ulimit -n`")
    return limit


def max_connections(settings: Settings) -> int:
    """Returns `max_connections`, or fewer if the limit of open files requires it, which logs a warning.

    Call it when the engines are open. Raises ConfigError as `raise_file_limit`.
    """
    limit = raise_file_limit()
    reserved = RESERVED_FILES + MAX_REFUSED_CONNECTIONS + MAX_HEALTH_CONNECTIONS + _num_open_files()
    if limit == resource.RLIM_INFINITY or limit - reserved >= settings.max_connections:
        return settings.max_connections
    allowed = max(_MIN_CONNECTIONS, limit - reserved)
    log.warning(
        "this process may open %d files, so it serves at most %d connections rather than max_connections = %d; raise "
        "the limit with `ulimit -n %d` (Docker: --ulimit nofile, systemd: LimitNOFILE), or lower max_connections",
        *(limit, allowed, settings.max_connections, settings.max_connections + reserved),
    )
    return allowed


def _num_open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return RESERVED_FILES


def _bind_port(hostname: str, port: int) -> list[socket.socket]:
    """Returns a bound socket for each address of the host name, all with the same port. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as fault:  # Python refuses a name with an empty or a too long label itself
        reason = fault.strerror if isinstance(fault, socket.gaierror) else "it is not the name of a host"
        raise ConfigError(f"hostname {hostname!r} is no address to listen on: {reason}") from fault
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            port = sock.getsockname()[1]
    except OSError as fault:
        for sock in sockets:
            sock.close()
        raise _explained(fault, f"{hostname}:{port}") from fault
    return sockets


def _bind_path(path: Path) -> socket.socket:
    """Returns a bound unix socket; replaces a socket file on which no process listens. Raises ConfigError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and not path.is_socket():
            raise FileExistsError(errno.EEXIST, "it exists and is not a socket")
        if path.exists() and not _answers(path):
            path.unlink()
        sock.bind(str(path))
    except OSError as fault:
        sock.close()
        raise _explained(fault, str(path)) from fault
    return sock


def _answers(path: Path) -> bool:
    """Returns whether a process listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def _explained(fault: OSError, address: str) -> ConfigError:
    reason = _REASONS.get(fault.errno or 0, "{} cannot be listened on: " + str(fault.strerror or fault))
    return ConfigError(reason.format(address))
