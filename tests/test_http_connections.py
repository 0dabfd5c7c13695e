"""Connections that another thread ends: wherever a server is silent, whoever waits for it hears of that at once."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from remote_server import Fault, serving

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.http_store import HttpStore
from lmdali.pipeline.remote_retry import RetryConfig, TransientError

PATIENCE = RetryConfig(read_timeout_seconds=1e4)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        yield listening


def read(address: str, held: list[HttpStore]) -> bytes:
    store = HttpStore(address, PATIENCE)
    held.append(store)
    with closing(store.open("file", 0)) as body:
        return b"".join(body.chunks)


def interrupted(address: str, until: Callable[[], object]) -> bytes | BaseException:
    """What comes of reading a file once `until` has returned and its store is interrupted."""
    stores: list[HttpStore] = []
    found: list[bytes | BaseException] = []

    def work() -> None:
        try:
            found.append(read(address, stores))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    until()
    while thread.is_alive():
        for store in stores:
            store.interrupt()
        thread.join(0.01)
    assert not stores[0]._connections._watched
    return found[0]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_takes_a_connection_and_says_nothing(scheme: str, listener: socket.socket) -> None:
    """With https it is the handshake that is waited for."""
    taken: list[socket.socket] = []

    def until() -> None:
        taken.append(listener.accept()[0])
        assert taken[0].recv(1)  # the request, or TLS's first word: from now on it waits

    found = interrupted(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", until)
    assert isinstance(found, TransientError) and taken.pop().close() is None


def test_a_server_that_takes_no_connection(listener: socket.socket) -> None:
    """Its queue is full, so that the system answers nothing: as where a machine is off."""
    with socket.socket() as first, socket.socket() as second:
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        found = interrupted(f"http://127.0.0.1:{listener.getsockname()[1]}", lambda: None)
    assert isinstance(found, TransientError)


def test_a_server_that_stops_in_the_middle(listener: socket.socket) -> None:
    taken: list[socket.socket] = []

    def until() -> None:
        taken.append(listener.accept()[0])
        taken[0].recv(1000)
        taken[0].sendall(HEAD + b"half")

    found = interrupted(f"http://127.0.0.1:{listener.getsockname()[1]}", until)
    assert found == b"half" or isinstance(found, TransientError), "what came before, and the end"
    taken.pop().close()


def test_a_forked_child_ends_none_of_its_parents_connections(listener: socket.socket) -> None:
    store = HttpStore(f"http://127.0.0.1:{listener.getsockname()[1]}", PATIENCE)
    ready = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(HEAD + b"half")
            ready.wait(100)
            connection.sendall(b"more")

    threading.Thread(target=serve, daemon=True).start()
    with closing(store.open("file", 0)) as body:
        child = os.fork()
        if not child:
            store.interrupt()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        ready.set()
        assert b"".join(body.chunks) == b"halfmore"


def test_what_is_over_is_watched_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with serving(tmp_path) as server:
        faults = Fault(302, {"Location": "/file"}), Fault(503), Fault(404), Fault(reset_after=3)
        server.once("file", *faults)
        store = HttpStore(server.address, PATIENCE)
        for _ in faults:
            with suppress(TransientError, RemoteError), closing(store.open("file", 0)) as body:
                assert store._connections._watched
                b"".join(body.chunks)
            assert not store._connections._watched
        assert server.count("file") == len(faults) + 1
    with pytest.raises(TransientError, match="refused"):
        store.open("file", 0)
    assert not store._connections._watched
