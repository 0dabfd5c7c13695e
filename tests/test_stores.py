"""Stores: a local folder, what fsspec opens, and what is said where a package is missing."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
from pathlib import Path

import fsspec
import pytest

from lmdali.pipeline.errors import ConfigError, InputError, MissingExtraError, RemoteError
from lmdali.pipeline.fsspec_store import FsspecStore
from lmdali.pipeline.remote_retry import Attempts, RetryConfig, TransientError
from lmdali.pipeline.remote_store import WritableStore
from lmdali.pipeline.stores import open_store, open_writable_store


def test_a_folder_is_a_store(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/set")
    store.put("a/b", b"content")
    body = store.open("a/b", 3)
    assert (body.start, body.num_bytes, b"".join(body.chunks)) == (3, 7, b"tent")
    for nothing in ("a/c", "a/b/c"):
        with pytest.raises(RemoteError, match="not found"):
            store.open(nothing, 0)


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EACCES, RemoteError, r"set/file: access denied \(Permission denied\)"),
        (errno.EISDIR, RemoteError, "set/file: Is a directory: check the address"),
        (errno.ENAMETOOLONG, RemoteError, "set/file: File name too long: check the address"),
        (errno.ESTALE, TransientError, "Stale file handle"),
        (errno.EIO, TransientError, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["stat", "open"])
def test_what_a_folder_says_is_judged_as_what_a_server_says(
    call: str, number: int, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may pass is tried again; a file that this user may not read is not, and is not called the cache's."""
    store = open_writable_store(f"file://{tmp_path}/set")
    store.put("file", b"content")

    def refused(path: Path, *_: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, call, refused)
    with pytest.raises(kind, match=message):
        list(store.open("file", 0).chunks)
    if call == "stat":
        with pytest.raises(kind, match=message):
            store.stat("file")


def test_fsspec_opens_the_rest() -> None:
    store = open_store("memory://bucket/set")
    store.put("file", b"content")
    body = store.open("file", 3)
    assert (body.start, body.num_bytes, b"".join(body.chunks)) == (3, 7, b"tent")
    with pytest.raises(RemoteError, match=r"memory://bucket/set/nothing: not found") as caught:
        store.open("nothing", 0)
    assert caught.value.is_missing
    with pytest.raises(InputError, match="nosuch"):
        open_store("nosuch://bucket/set")


@pytest.mark.parametrize(
    ("bytes_per_second", "expected"),
    [
        (50_000, [1 << 20, *[200_000] * 194, 151_424]),  # 4 s a request, and no more than that to wait for
        (1_000, [1 << 20, *[1 << 17] * 297, 23_040]),
        (10**9, [1 << 20, 16 << 20, 16 << 20, 40_000_000 - (33 << 20)]),
    ],
)
def test_a_slow_line_is_asked_for_less_at_a_time(
    bytes_per_second: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("memory://bucket/slow")
    assert isinstance(store, FsspecStore)
    now, asked = 0.0, []

    def cat_file(path: str, start: int, end: int) -> bytes:
        nonlocal now
        now += (end - start) / bytes_per_second
        asked.append(end - start)
        return bytes(end - start)

    monkeypatch.setattr("lmdali.pipeline.fsspec_store.perf_counter", lambda: now)
    monkeypatch.setattr(store._filesystem, "info", lambda path: {"size": 40_000_000}, raising=False)
    monkeypatch.setattr(store._filesystem, "cat_file", cat_file, raising=False)
    for chunk in store.open("data.mdb", 0).chunks:
        now += 100  # what is done with a chunk is no matter of the line
        assert len(chunk) == asked[-1]
    assert asked == expected and sum(asked) == 40_000_000


def test_a_host_that_cannot_be_found_is_a_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(fsspec.core, "url_to_fs", unknown)
    with pytest.raises(RemoteError, match=r"ftp://host/set: .*not known: check the address"):
        open_store("ftp://ann:secret@host/set")


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmdali\[remote\]'"):
        open_store("s3://bucket/set")
    with pytest.raises(MissingExtraError, match=r"pip install 'lmdali\[gcs\]'"):
        open_store("gs://bucket/set")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else True)
    with pytest.raises(MissingExtraError, match=r"'gcsfs', .* pip install 'lmdali\[gcs\]'"):
        open_store("gs://bucket/set")


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WritableStore:
    return open_writable_store(f"file://{tmp_path}/set" if request.param == "file" else f"memory://bucket{tmp_path}")


def test_files_are_written_told_of_and_removed(store: WritableStore, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content" * 1000)
    assert store.stat("a/b") is None
    store.put_file("a/b", tmp_path / "local", "", Attempts("it", RetryConfig()))
    found = store.stat("a/b")
    assert found is not None and (found.num_bytes, found.sha256) == (7000, None)
    assert b"".join(store.open("a/b", 6990).chunks) == b"contentcontent"[-10:]
    store.put("a/b", b"new")
    found = store.stat("a/b")
    assert found is not None and found.num_bytes == 3
    store.remove("a/b")
    store.remove("a/b")
    assert store.stat("a/b") is None


def test_http_is_only_read() -> None:
    with pytest.raises(ConfigError, match=r"https://host/set.*: plain HTTP cannot be written to: give the bucket"):
        open_writable_store("https://me:hush@host/set?signature=1")
