"""HTTP/1.1 for one process: httptools parses, each connection is bounded in bytes and time, and the end drains.

sockets: what is listened on, and how many files the process may open. connection: bytes to requests, one at a time.
exchange: one request and its reply as ASGI. pool: the connections of a listener. run: from start to end.
"""

from bei_core.http.server.run import serve
from bei_core.http.server.sockets import Sockets, bind

__all__ = ["Sockets", "bind", "serve"]
