"""API keys: authentication, rate limits, and limits of concurrent requests."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from weakref import ref

from bei_core.config.keys import ApiKey, read_keys
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError, OverloadedError, UnauthorizedError

log = logging.getLogger(__name__)

_SCHEMES = frozenset({b"bearer", b"api-key"})
_RELOAD_S = 1.0  # the time between two checks of the file for changes
_BURST_S = 1.0  # a client may send at once the requests that its rate allows in this time, and always one


class Client:
    """One API key, with its number of requests in progress and its rate limit (a token bucket)."""

    def __init__(self, name: str, key: ApiKey) -> None:
        self.name = name
        self.num_requests = 0
        self._allowed, self._counted_at = 0.0, 0.0
        self.key = key
        text = key.key.strip()
        # Most clients send the key in UTF-8; some use Latin-1, the older encoding of HTTP headers, if it has the key.
        self.digests = {_digest(text.encode())}
        with suppress(UnicodeEncodeError):
            self.digests.add(_digest(text.encode("latin-1")))

    def enter(self) -> None:
        """Counts a new request; call `leave` when it ends. Raises OverloadedError if it exceeds a limit of the key."""
        key, now = self.key, time.monotonic()
        if key.max_concurrent_requests is not None and self.num_requests >= key.max_concurrent_requests:
            said = f"the key {self.name} has {self.num_requests} requests in progress; try again"
            raise OverloadedError(said, cause="key_limit")
        if key.requests_per_minute is not None:
            rate = key.requests_per_minute / 60
            burst = max(1.0, rate * _BURST_S)
            self._allowed = min(burst, self._allowed + rate * (now - self._counted_at))
            self._counted_at = now
            if self._allowed < 1:
                wait_s = math.ceil((1 - self._allowed) / rate)
                limit = f"requests_per_minute is {key.requests_per_minute}, {int(burst)} at once"
                said = f"the limit of the key {self.name} is reached: {limit}; try again in {wait_s} s"
                raise OverloadedError(said, cause="key_limit", retry_after_s=wait_s)
            self._allowed -= 1
        self.num_requests += 1

    def leave(self) -> None:
        """Counts the end of a request."""
        self.num_requests -= 1


class Keys:
    """The API keys of a server. A thread reads their file again when it changes, which takes 0.2 s for 1,000 keys."""

    def __init__(self, settings: Settings) -> None:
        self._path: Path | None = settings.api_keys_file
        self._clients: dict[str, Client] = {}
        self._by_digest: dict[bytes, Client] = {}
        self._stamp: object = None
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._take(read_keys(self._path))
            Thread(target=_look_again, args=[ref(self)], name="bei-keys", daemon=True).start()
        elif settings.api_key is not None:
            self._take({"api_key": ApiKey(settings.api_key)})

    def __bool__(self) -> bool:
        return bool(self._clients)

    def client(self, headers: Mapping[bytes, bytes]) -> Client:
        """Returns the client whose key is in the header `Authorization: Bearer KEY`, or Baseten's `Api-Key KEY`.

        Raises UnauthorizedError. The time depends on a digest only, so it reveals nothing about the keys.
        """
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        found = self._by_digest.get(_digest(given.strip()))
        if found is None or scheme.lower() not in _SCHEMES:
            raise UnauthorizedError("the API key is missing or wrong; send `Authorization: Bearer KEY`")
        return found

    def look(self) -> None:
        """Reads the file if it has changed; until it is read, the keys stay as they are."""
        if self._path is None or (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keys(self._path))
        except ConfigError as fault:
            log.error("the API keys stay as they were: %s", fault)
        else:
            log.info("api_keys_file has changed; the keys are now those of %s", ", ".join(sorted(self._clients)))

    def _take(self, keys: Mapping[str, ApiKey]) -> None:
        """Replaces the keys; a key that has not changed keeps its counters."""
        old = self._clients
        self._clients = {
            name: old[name] if name in old and old[name].key == key else Client(name, key) for name, key in keys.items()
        }
        self._by_digest = {digest: client for client in self._clients.values() for digest in client.digests}


def _look_again(keys: ref[Keys]) -> None:
    """Looks again and again whether the file has changed, as long as the keys are in use."""
    while (found := keys()) is not None:
        try:
            found.look()
        except Exception:  # without this thread, no key could be taken back
            log.exception("this is a bug: api_keys_file could not be read again")
        del found
        time.sleep(_RELOAD_S)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Returns a file's modification time (ns), size (bytes) and inode, to detect changes; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
