"""An HTTP/1.1 server of one folder for benchmarks: sendfile, one thread per connection, with latency and bandwidth.

    python benchmarks/file_server.py FOLDER [--latency-ms 50] [--megabytes-per-second 100]

It answers GET and HEAD, one range, and keeps connections alive; S3 clients that are given its address as their endpoint
find buckets in its folders, since reading an object is no more than that (their signatures are not looked at). The
kernel copies files to sockets, so a byte costs this process next to nothing. Latency is waited for once when a
connection is made, as handshakes do, and once before each answer. Bandwidth is what all connections have together. The
first line on standard output is the port; GET /.counts answers what was sent so far.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import unquote, urlsplit

COUNTS_PATH = "/.counts"
_HEAD_BYTES = 65_536
_PIECE_BYTES = 262_144
"""Sent at once where bandwidth is limited."""
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)\r\n", re.IGNORECASE)


@dataclass
class Counts:
    """What was asked for and sent; of counts themselves nothing is counted.

    Attributes:
        connections: made.
        requests: answered.
        sent_bytes: of bodies.
    """

    connections: int = 0
    requests: int = 0
    sent_bytes: int = 0


@dataclass
class Line:
    """What lies between this server and its clients.

    Attributes:
        latency_seconds: of a connection, and of each answer.
        bytes_per_second: of all connections together; None is no limit.
    """

    latency_seconds: float = 0.0
    bytes_per_second: float | None = None
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def delay(self) -> None:
        """One way there and back."""
        if self.latency_seconds:
            sleep(self.latency_seconds)

    def pass_through(self, num_bytes: int) -> None:
        """Wait until so many bytes have gone through, behind those of others."""
        if self.bytes_per_second is not None:
            with self._lock:
                self._free_at = max(self._free_at, monotonic()) + num_bytes / self.bytes_per_second
                wait = self._free_at - monotonic()
            sleep(max(0.0, wait))


class FileServer:
    """Serves a folder on a port of its own, from threads of this process.

    Args:
        folder: what is served; links in it are followed.
        line: how slow it is made.
    """

    def __init__(self, folder: Path, line: Line) -> None:
        self._folder, self._line, self.counts = folder, line, Counts()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Until the process ends."""
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._add(connections=1)
            self._line.delay()
            waiting = b""
            try:
                while True:
                    while b"\r\n\r\n" not in waiting:
                        received = connection.recv(_HEAD_BYTES)
                        if not received or len(waiting) > _HEAD_BYTES:
                            return
                        waiting += received
                    head, _, waiting = waiting.partition(b"\r\n\r\n")
                    self._answer(connection, head + b"\r\n")
            except OSError:  # whoever asked has left
                return

    def _answer(self, connection: socket.socket, head: bytes) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        path = unquote(urlsplit(target).path)
        if path == COUNTS_PATH:
            self._send(connection, "200 OK", json.dumps(asdict(self.counts)).encode())
            return
        self._line.delay()
        self._add(requests=1)
        file = self._folder / path.lstrip("/")
        if method not in ("GET", "HEAD"):
            self._send(connection, "405 Method Not Allowed")
        elif ".." in path or not file.is_file():
            self._send(connection, "404 Not Found")
        else:
            self._send_file(connection, file, _RANGE.search(head), with_body=method == "GET")

    def _send_file(
        self, connection: socket.socket, path: Path, asked: re.Match[bytes] | None, *, with_body: bool
    ) -> None:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            start, stop, state = 0, status.st_size, "200 OK"
            headers = {
                "Last-Modified": formatdate(status.st_mtime, usegmt=True),
                "ETag": f'"{status.st_size:x}-{status.st_mtime_ns:x}"',
                "Accept-Ranges": "bytes",
            }
            if asked is not None:
                start = int(asked[1])
                stop = min(int(asked[2]) + 1, status.st_size) if asked[2] else status.st_size
                if start >= stop:
                    self._send(connection, "416 Range Not Satisfiable")
                    return
                state, headers["Content-Range"] = "206 Partial Content", f"bytes {start}-{stop - 1}/{status.st_size}"
            self._send(connection, state, headers=headers | {"Content-Length": str(stop - start)})
            while with_body and start < stop:
                piece = stop - start if self._line.bytes_per_second is None else min(_PIECE_BYTES, stop - start)
                self._line.pass_through(piece)
                sent = os.sendfile(connection.fileno(), file.fileno(), start, piece)
                start += sent
                self._add(sent_bytes=sent)

    def _send(
        self, connection: socket.socket, status: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        lines = {"Content-Length": str(len(body))} | (headers or {})
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.sendall(f"HTTP/1.1 {status}\r\n{text}\r\n".encode() + body)

    def _add(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--megabytes-per-second", type=float, help="of all connections together")
    options = parser.parse_args(arguments)
    limit = None if options.megabytes_per_second is None else 1e6 * options.megabytes_per_second
    server = FileServer(options.folder, Line(options.latency_ms / 1e3, limit))
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
