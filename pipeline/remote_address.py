"""Addresses of remote datasets: told from paths, joined, and shown without what nobody may see."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeGuard
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from lmdali.pipeline.errors import ConfigError, RemoteError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Paths and passwords as they are typed may have spaces. Rather too much is hidden than too little.
_QUERY_IN_TEXT = re.compile(r"(://[^?'\"\n]*)\?[^\s'\"]+")
_USER_IN_TEXT = re.compile(r"://[^/'\"\n]+@")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PUNCTUATION = "!#$%&'()*+,/:;=?@[]~"


def is_remote(dataset: str | os.PathLike[str]) -> TypeGuard[str]:
    """Whether a dataset argument is an address (`scheme://...`) and no path."""
    return isinstance(dataset, str) and _SCHEME.match(dataset) is not None


def scheme_of(address: str) -> str:
    """Scheme of an address in lower case, such as "https"."""
    match = _SCHEME.match(address)
    assert match is not None, "only addresses are asked"
    return match[1].lower()


def file_address_path(address: str) -> Path:
    """The path that a `file://` address names.

    Raises:
        ConfigError: it names another host, as the first folder of `file://folder/set` does, or has a query or fragment:
            what is left of it would be another path.
    """
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{address!r}: names the host {parts.netloc!r}: a path on this machine is file:///folder/set")
    if parts.query or parts.fragment:
        raise ConfigError(f"{address!r}: write a ? in a path as %3F and a # as %23, or give the path itself")
    return Path(unquote(parts.path))


def joined(address: str, name: str) -> str:
    """The address of a file of a dataset. A query (a signature) stays behind the path."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def as_sent(address: str) -> str:
    """An http(s) address as it goes over the wire: spaces and letters beyond ASCII escaped, what is escaped left so.

    Raises:
        RemoteError: its host or port cannot be one.
    """
    parts = _parts(address)
    try:
        place = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    except UnicodeError:
        raise _no_address(address, "its host has no name") from None
    if not parts.hostname or re.search(r"\s", place):
        raise _no_address(address, "it names no host")
    path, query = (quote(_LONE_PERCENT.sub("%25", text), safe=_PUNCTUATION) for text in (parts.path, parts.query))
    return urlunsplit(SplitResult(parts.scheme, place, path, query, ""))


def without_user(address: str) -> tuple[str, str | None]:
    """An address without its `user:password@`, and those two as they were given, or None.

    Raises:
        RemoteError: its host or port cannot be one.
    """
    parts = _parts(address)
    user, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=place)), unquote(user) or None


def _parts(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - raises what `urlsplit` does not
    except ValueError as error:
        raise _no_address(address, str(error)) from None
    return parts


def _no_address(address: str, why: str) -> RemoteError:
    return RemoteError(f"{redacted(address)}: not an address of a host ({why}): write it as https://HOST/FOLDER")


def redacted(text: str) -> str:
    """An address, or a text with addresses in it, without users, passwords, signatures and other queries."""
    return _QUERY_IN_TEXT.sub(r"\1?***", _USER_IN_TEXT.sub("://", text))
