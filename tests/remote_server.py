"""An HTTP server of a folder, with planned faults and a log of what was asked for."""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_PIECE_BYTES = 4096
"""Sent at once where the rate is limited."""

_TCP = Path("/proc/net/tcp")
"""Connections of this machine: their ends, and how many bytes wait at each to be acknowledged and to be read."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    Attributes:
        status: sent instead of the file, with `headers`.
        headers: as they are.
        reset_after: bytes of the body after which the connection is reset.
        short_by: bytes that are missing at the end, although the length says nothing of it.
        flip: position of a byte that is sent wrong.
        body: sent instead of the file's bytes, with 200.
        drip_seconds: between the bytes of the body, which come one by one.
        pause_seconds: in the middle of the body.
        ignores_range: the whole file is sent, with 200.
        shifted: bytes by which an answer to a range begins too early.
        bytes_per_second: at which the body comes at most.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    reset_after: int | None = None
    short_by: int = 0
    flip: int | None = None
    body: bytes | None = None
    drip_seconds: float = 0
    pause_seconds: float = 0
    ignores_range: bool = False
    shifted: int = 0
    bytes_per_second: float | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked may leave at any moment: nothing on stderr, which may be another test's by then."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class RemoteServer:
    """Serves a folder on a port of its own.

    Attributes:
        address: of the folder.
        requests: (path, first byte asked for) of each, in order.
        authorizations: what each request had to say of who asks.
        folder: what is served; may be changed while it runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, int]] = []
        self.authorizations: list[str | None] = []
        self._once: dict[str, list[Fault]] = defaultdict(list)
        self._always: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def once(self, path: str, *faults: Fault) -> None:
        """The next answers for this path go wrong, one after the other."""
        self._once[path] += faults

    def always(self, path: str, fault: Fault) -> None:
        """Every answer for this path goes wrong, once those of `once` are over."""
        self._always[path] = fault

    def count(self, path: str) -> int:
        """Requests for a path."""
        return sum(asked == path for asked, _ in self.requests)

    def shards_asked(self) -> list[str]:
        """Names of the shards that were asked for, once per request."""
        found = [re.fullmatch(r"shards/(\d+)/data\.mdb", path) for path, _ in self.requests]
        return [match[1] for match in found if match]

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, path: str, start: int) -> Fault:
        """What is planned for a request, which is noted."""
        with self._lock:
            self.requests.append((path, start))
            planned = self._once[path]
            return planned.pop(0) if planned else self._always.get(path, Fault())


@contextmanager
def serving(folder: Path) -> Iterator[RemoteServer]:
    """A server for as long as the block runs."""
    server = RemoteServer(folder)
    try:
        yield server
    finally:
        server.close()


def _wait_until_read(connection: socket.socket) -> None:
    """Until the other side, which is on this machine, has read all that was sent: a reset drops what it has not."""
    here, there = (f"0100007F:{port:04X}" for _, port in (connection.getsockname(), connection.getpeername()))
    pause, none = 0.001, ("0", "0")
    while pause < 1:
        time.sleep(pause)
        rows = [line.split() for line in _TCP.read_text().splitlines()[1:]]
        queues = {(row[1], row[2]): row[4].split(":") for row in rows}
        # Our end counts one more byte to be read once the other has closed, for ever: it is not asked for it.
        unsent, unread = queues.get((here, there), none)[0], queues.get((there, here), none)[1]
        if int(unsent, 16) == int(unread, 16) == 0:
            return
        pause *= 1.05


def _handler(server: RemoteServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0].lstrip("/"))
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            server.authorizations.append(self.headers.get("Authorization"))
            fault = server.next_fault(path, start)
            file = server.folder / path
            if fault.status != 200:
                self.answer(fault.status, b"no", {**fault.headers})
            elif fault.body is not None:
                self.answer(200, fault.body, {})
            elif not file.is_file():
                self.answer(404, b"no such file", {})
            elif start > file.stat().st_size:
                self.answer(416, b"", {"Content-Range": f"bytes */{file.stat().st_size}"})
            else:
                self.send_file(file.read_bytes(), start if asked else None, fault)

        def send_file(self, content: bytes, start: int | None, fault: Fault) -> None:
            status, headers = 200, {}
            if start is not None and not fault.ignores_range:
                begin = start - fault.shifted
                status, headers = 206, {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
            else:
                begin = 0
            if fault.flip is not None:
                content = content[: fault.flip] + bytes([content[fault.flip] ^ 1]) + content[fault.flip + 1 :]
            self.answer(status, content[begin : len(content) - fault.short_by], headers, fault)

        def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
            fault = fault or Fault()
            self.close_connection = True
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) + fault.short_by))
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                if fault.reset_after is not None:
                    self.wfile.write(body[: fault.reset_after])
                    self.wfile.flush()
                    _wait_until_read(self.connection)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                elif fault.pause_seconds:
                    self.wfile.write(body[: len(body) // 2])
                    time.sleep(fault.pause_seconds)
                    self.wfile.write(body[len(body) // 2 :])
                elif fault.bytes_per_second is not None:
                    begin = time.monotonic()
                    for at in range(0, len(body), _PIECE_BYTES):
                        piece = body[at : at + _PIECE_BYTES]
                        time.sleep(max(0.0, begin + (at + len(piece)) / fault.bytes_per_second - time.monotonic()))
                        self.wfile.write(piece)
                elif fault.drip_seconds:
                    for at in range(len(body)):
                        self.wfile.write(body[at : at + 1])
                        time.sleep(fault.drip_seconds)
                else:
                    self.wfile.write(body)
            except OSError:
                pass  # whoever asked has left

    return Handler
