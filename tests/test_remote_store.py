"""Stores: a local folder, what fsspec opens, and what is said where a package is missing."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import fsspec
import pytest

from lmdali.pipeline.errors import ConfigError, InputError, MissingExtraError, RemoteError
from lmdali.pipeline.remote_retry import Attempts, RetryConfig
from lmdali.pipeline.remote_store import WritableStore, open_store, open_writable_store


def test_a_folder_is_a_store(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/set")
    store.put("a/b", b"content")
    body = store.open("a/b", 3)
    assert (body.start, body.num_bytes, b"".join(body.chunks)) == (3, 7, b"tent")
    with pytest.raises(RemoteError, match="not found"):
        store.open("a/c", 0)


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
