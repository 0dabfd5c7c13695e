"""Files over HTTP and HTTPS, by Python's own client: no package is needed, and every status is ours to judge.

Redirects are followed by hand: a few of them, never from https to http, and a password goes to no other server.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.http_connections import WatchedConnections
from lmdali.pipeline.remote_address import as_sent, joined, redacted, without_user
from lmdali.pipeline.remote_retry import RetryConfig, TransientError
from lmdali.pipeline.remote_store import CHUNK_BYTES, Body, not_allowed, not_found

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429)
"""And every 5xx."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, *_: object) -> None:
        """None makes a redirect an error like any other, before anybody reads where it leads to."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # type: ignore[assignment]


class HttpStore:
    """The files below one http(s) address.

    Args:
        address: of the folder; `user:password@` is sent as basic authentication, a query behind every path. Spaces and
            letters beyond ASCII are sent escaped.
        config: patience.

    Raises:
        RemoteError: its host or port cannot be one.
    """

    def __init__(self, address: str, config: RetryConfig) -> None:
        place, self._user = without_user(address)
        self._address = as_sent(place)
        self.shown = redacted(place)
        self._timeout = config.read_timeout_seconds
        self._connections = WatchedConnections()
        self._opener = urllib.request.build_opener(_NoRedirect, self._connections)

    def open(self, name: str, start: int) -> Body:
        """The file's bytes from `start` on, or all of them where the server knows no ranges.

        Raises:
            RemoteError: not there, not allowed, or an endless redirection.
            TransientError: anything that may pass.
        """
        response, close = self._request(joined(self._address, name), start)
        try:
            begin, size = _extent(response.status, response.headers, start)
        except TransientError:
            close()
            raise
        return Body(begin, size, _chunks(response), close)

    def interrupt(self) -> None:
        """End all connections, whatever they wait for."""
        self._connections.interrupt()

    def _request(self, url: str, start: int) -> tuple[http.client.HTTPResponse, Callable[[], object]]:
        """An answer with a file, and what ends its connection."""
        origin = urlsplit(url)
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "lmdali"})
            if start:
                request.add_header("Range", f"bytes={start}-")
            if self._user is not None and (parts.scheme, parts.netloc) == (origin.scheme, origin.netloc):
                request.add_header("Authorization", "Basic " + base64.b64encode(self._user.encode()).decode())
            try:
                return self._opened(request)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416 and start:  # there are not so many bytes: let the size be seen
                    return self._request(origin.geturl(), 0)
                target = error.headers.get("Location")
                if error.code not in _REDIRECTS or not target:
                    raise _judged(redacted(url), error.code, error.headers) from None
                # A header's bytes come as Latin-1; a path beyond ASCII is in UTF-8, or is what it seems.
                with suppress(UnicodeError):
                    target = target.encode("latin-1").decode()
                with suppress(ValueError):  # no address is refused as another kind of one
                    target = urljoin(url, target)
                scheme = target.partition(":")[0]
                if scheme != "https" and scheme != origin.scheme:
                    raise RemoteError(
                        f"{redacted(origin.geturl())}: redirected to {redacted(target)}: refused, for it is less safe: "
                        "check the address"
                    ) from None
                url = as_sent(target)
        raise RemoteError(
            f"{redacted(origin.geturl())}: redirected more than {_MAX_REDIRECTS} times: check the address"
        )

    def _opened(self, request: urllib.request.Request) -> tuple[http.client.HTTPResponse, Callable[[], object]]:
        with ExitStack() as ended:
            ended.callback(self._connections.forget, request)
            with _client_errors(redacted(request.full_url)):
                response = ended.enter_context(self._opener.open(request, timeout=self._timeout))
            return response, ended.pop_all().close


def _judged(shown: str, status: int, headers: Message) -> RemoteError | TransientError:
    if status in (404, 410):
        return not_found(shown)
    if status in (401, 403):
        return not_allowed(shown, f"HTTP {status}")
    if status in _TRANSIENT or status >= 500:
        return TransientError(f"HTTP {status}", _retry_after_seconds(headers.get("Retry-After")))
    return RemoteError(f"{shown}: HTTP {status}: check the address")


def _retry_after_seconds(value: str | None) -> float | None:
    """Seconds in a `Retry-After` header, which has seconds or a date; None for none and for nonsense."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _extent(status: int, headers: Message, start: int) -> tuple[int, int | None]:
    """Where a body begins, and the size of the whole file as far as the server says."""
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise TransientError(f"asked for bytes from {start}, answered {headers.get('Content-Range')!r}")
        return start, None if match[2] == "*" else int(match[2])
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        with _client_errors(""):
            chunk = response.read1(CHUNK_BYTES)  # what is there: one slow chunk must not look like none
        if not chunk:
            return
        yield chunk


@contextmanager
def _client_errors(shown: str) -> Iterator[None]:
    """What the client raises, as errors of ours. HTTP statuses pass."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise RemoteError(
                f"{shown}: its certificate is not to be trusted ({cause.verify_message}): check the address, and the "
                "certificates of this machine (SSL_CERT_FILE)"
            ) from None
        if isinstance(cause, TimeoutError):
            raise TransientError("no answer in time") from None
        raise TransientError(redacted(str(cause)) or type(cause).__name__) from None
