"""S3 in the test process: moto's server, with a log of what was written, planned faults, and requests that wait."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

KEY, SECRET = "AKIATESTKEY", "hush-hush"
BUCKET = "bucket"


@dataclass(frozen=True)
class Hold:
    """A request that waits.

    Attributes:
        reached: set when it has come.
        release: lets it go on.
    """

    reached: threading.Event
    release: threading.Event


class S3Server:
    """One server for many tests: each takes a prefix of its own.

    Attributes:
        endpoint: its address.
        written: how often each key was written, by single requests or the completion of several.
        environment: of a process that uses it.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self.written: Counter[str] = Counter()
        self._planned: list[tuple[str, str, Callable[[], str | None]]] = []
        self._lock = threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=MotoRequestHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def fail(self, method: str, part: str, *statuses: str) -> list[str]:
        """The next requests of this method whose path has this part are answered so; returns what is left of it."""
        left = list(statuses)
        with self._lock:
            self._planned.append((method, part, lambda: left.pop(0) if left else None))
        return left

    def hold(self, method: str, part: str) -> Hold:
        """The next request of this method whose path has this part waits until it is released."""
        held, once = Hold(threading.Event(), threading.Event()), threading.Lock()

        def wait() -> None:
            if once.acquire(blocking=False):
                held.reached.set()
                held.release.wait(100)

        with self._lock:
            self._planned.append((method, part, wait))
        return held

    def forget(self) -> None:
        """Drop all plans."""
        with self._lock:
            self._planned.clear()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        with self._lock:
            found = [plan for verb, part, plan in self._planned if verb == method and part in path]
        for plan in found:
            status = plan()
            if status is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(status, [("Content-Type", "application/xml")])
                return [f"<Error><Code>{status.split()[-1]}</Code><Message>no</Message></Error>".encode()]

        def note(status: str, headers: Any, *rest: Any) -> Any:
            is_write = (method == "PUT" and "partNumber" not in query) or (method == "POST" and "uploadId" in query)
            if is_write and status.startswith("200"):
                with self._lock:
                    self.written[path.removeprefix(f"/{BUCKET}/")] += 1
            return start_response(status, headers, *rest)

        answer: Iterable[bytes] = self._app(environ, note)
        return answer


@contextmanager
def s3_serving() -> Iterator[S3Server]:
    """A server with an empty bucket, for as long as the block runs. Nobody else may have used s3fs in this process."""
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
