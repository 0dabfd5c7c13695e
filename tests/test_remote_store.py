"""Stores: a local folder, what fsspec opens, and what is said where a package is missing; S3 where moto is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lmdali.pipeline.errors import InputError, MissingExtraError, RemoteError
from lmdali.pipeline.remote_store import open_store

HAS_S3 = all(importlib.util.find_spec(name) for name in ("moto", "s3fs"))


def test_a_folder_is_a_store(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/set")
    store.put("a/b", b"content")
    body = store.open("a/b", 3)
    assert (body.start, body.num_bytes, b"".join(body.chunks)) == (3, 7, b"tent")
    with pytest.raises(RemoteError, match="not found"):
        store.open("a/c", 0)


@pytest.mark.skipif(not importlib.util.find_spec("fsspec"), reason="fsspec is not installed")
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


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmdali\[remote\]'"):
        open_store("s3://bucket/set")


@pytest.mark.skipif(not HAS_S3, reason="moto and s3fs are not installed")
@pytest.mark.filterwarnings("ignore")  # those of the packages
def test_an_s3_bucket_is_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        store = open_store("s3://bucket/set")
        store.put("shards/00000/data.mdb", bytes(range(256)))
        body = store.open("shards/00000/data.mdb", 250)
        assert (body.num_bytes, b"".join(body.chunks)) == (256, bytes(range(250, 256)))
        with pytest.raises(RemoteError, match=r"s3://bucket/set/nothing: not found"):
            store.open("nothing", 0)
    finally:
        server.stop()
