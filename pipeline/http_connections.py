"""The connections of one place over HTTP, which another thread can end: whoever waits there gets an error at once.

urllib shows no socket before there is an answer, and a server that says nothing is waited for before that: while it is
connected to, while TLS is agreed upon, until its first line. So each socket is made here, and a second descriptor of it
is kept, because a TLS connection takes the first one's over.
"""

from __future__ import annotations

import http.client
import os
import socket
import urllib.request
from contextlib import suppress
from functools import partial
from typing import Any


class WatchedConnections(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """urllib's handler of http and https, for `build_opener`."""

    def __init__(self) -> None:
        super().__init__()
        # Whoever takes an entry out closes it: no lock, which a forked child might find taken for ever.
        self._watched: dict[urllib.request.Request, tuple[int, socket.socket]] = {}

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """What urllib calls for an address with http."""
        return self.do_open(partial(self._made, http.client.HTTPConnection, request), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """What urllib calls for an address with https."""
        return self.do_open(partial(self._made, http.client.HTTPSConnection, request), request)

    def interrupt(self) -> None:
        """End all connections: waiting for them, and reading, fails or finds the end."""
        while self._watched:
            with suppress(KeyError, OSError):  # its reader was quicker; it was not connected yet, or is not any more
                _, (process, end) = self._watched.popitem()
                with end:
                    if process == os.getpid():  # a parent's goes on
                        end.shutdown(socket.SHUT_RDWR)

    def forget(self, request: urllib.request.Request) -> None:
        """A request is over."""
        if found := self._watched.pop(request, None):
            found[1].close()

    def _made(self, kind: Any, request: urllib.request.Request, host: str, **options: Any) -> Any:
        made = kind(host, **options)
        # Where http.client makes its socket: not documented, and the same in every Python that we run on. One that has
        # it elsewhere would wait for silent servers again, and a test says so.
        made._create_connection = partial(self._connected, request)
        return made

    def _connected(
        self, request: urllib.request.Request, address: tuple[str, int], timeout: float, source: None = None
    ) -> socket.socket:
        """`socket.create_connection`, watched before it connects."""
        failed: OSError | None = None
        for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            self.forget(request)
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(timeout)
                self._watched[request] = os.getpid(), made.dup()
                made.connect(place)
                return made
            except OSError as error:
                made.close()
                failed = error
        raise failed or OSError(f"{address[0]} has no address")
