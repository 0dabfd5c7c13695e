"""Objects of a bucket: parts, hashes, conditions, and what is said where the store refuses. Against moto's server."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import SECRET, S3Server

from lmdali.pipeline import s3_store
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.remote_retry import Attempts, Clock, RetryConfig, TransientError
from lmdali.pipeline.s3_store import S3Store
from lmdali.tools.dataset_upload import upload_dataset

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

PATIENCE = RetryConfig(tries=3)
CONTENT = bytes(n * n % 251 for n in range(11 << 10)) * 1024
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Sent:
    """A store of a prefix of its own, and the pauses made."""

    def __init__(self, prefix: str) -> None:
        self.store = S3Store(f"s3://bucket/{prefix}", PATIENCE)
        self.pauses: list[float] = []

    def put(self, path: Path) -> None:
        clock = Clock(sleep=self.pauses.append, chance=lambda: 0.0)
        self.store.put_file("file", path, SHA256, Attempts("it", PATIENCE, clock))


@pytest.fixture
def sent(s3: S3Server, request: pytest.FixtureRequest) -> Sent:
    return Sent(request.node.name)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three parts."""
    monkeypatch.setattr(s3_store, "_PART_BYTES", 5 << 20)
    (tmp_path / "large").write_bytes(CONTENT)
    return tmp_path / "large"


def test_an_object_is_written_with_its_hash_and_read_in_ranges(sent: Sent, tmp_path: Path) -> None:
    assert sent.store.stat("file") is None
    (tmp_path / "small").write_bytes(bytes(range(256)))
    sent.put(tmp_path / "small")
    assert sent.store.stat("file") == (256, SHA256)
    body = sent.store.open("file", 250)
    assert (body.num_bytes, b"".join(body.chunks)) == (256, bytes(range(250, 256)))
    with pytest.raises(RemoteError, match=r"nothing: not found"):
        sent.store.open("nothing", 0)
    sent.store.put("file", b"new")
    assert sent.store.stat("file") == (3, hashlib.sha256(b"new").hexdigest())
    sent.store.remove("file")
    sent.store.remove("file")
    assert sent.store.stat("file") is None


def test_a_large_object_comes_in_parts_each_tried_for_itself(sent: Sent, large: Path, s3: S3Server) -> None:
    s3.fail("PUT", "/file", "503 SlowDown", "500 InternalError")
    sent.put(large)
    assert sent.store.stat("file") == (len(CONTENT), SHA256)
    assert b"".join(sent.store.open("file", 0).chunks) == CONTENT
    assert sent.pauses == [0.5, 1.0]
    assert sum(s3.written.values()) == 1


def test_what_a_given_up_or_killed_upload_left_is_not_paid_for(sent: Sent, large: Path, s3: S3Server) -> None:
    s3.fail("PUT", "/file", *["500 InternalError"] * 3)
    with pytest.raises(RemoteError, match="given up after 3 tries"):
        sent.put(large)
    assert sent.store.stat("file") is None and not sent.store._unfinished("file")
    for name in ("file", "file2"):
        sent.store._call(name, "create_multipart_upload")
    sent.put(large)
    assert not sent.store._unfinished("file") and sent.store._unfinished("file2")


def test_an_upload_whose_last_answer_was_lost_is_complete(
    sent: Sent, large: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = S3Store._call
    lost: list[str] = []

    def losing(store: S3Store, name: str, method: str, **arguments: Any) -> Any:
        answer = call(store, name, method, **arguments)
        if method == "complete_multipart_upload":
            lost.append(arguments["UploadId"])
            raise TransientError("no answer in time")
        return answer

    monkeypatch.setattr(S3Store, "_call", losing)
    sent.put(large)
    assert len(lost) == 1 and sent.store.stat("file") == (len(CONTENT), SHA256)
    monkeypatch.setattr(S3Store, "stat", lambda *_: None)
    with pytest.raises(RemoteError):
        sent.put(large)


def test_a_forked_child_reads_as_its_parent_does(sent: Sent) -> None:
    sent.store.put("file", b"content")
    child = os.fork()
    if not child:
        try:
            is_right = b"".join(sent.store.open("file", 0).chunks) == b"content"
        except BaseException:
            is_right = False
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert b"".join(sent.store.open("file", 0).chunks) == b"content"


def test_a_range_may_take_as_long_as_the_lowest_rate_allows(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    sent.store.put("file", b"content")
    given: list[float] = []
    result = Future[Any].result

    def noting(future: Future[Any], timeout: float) -> Any:
        given.append(timeout)
        return result(future, timeout)

    monkeypatch.setattr(Future, "result", noting)
    assert b"".join(sent.store.open("file", 0).chunks) == b"content"
    least = PATIENCE.read_timeout_seconds
    assert given == [least, least + len(b"content") / PATIENCE.min_bytes_per_second], "its size, then its bytes"


def test_who_may_not_list_uploads_can_still_write(sent: Sent, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: str) -> list[str]:
        raise RemoteError("access denied")

    monkeypatch.setattr(sent.store, "_unfinished", refused)
    sent.put(large)
    assert sent.store.stat("file") == (len(CONTENT), SHA256)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("403 AccessDenied", "access denied"),
        ("403 SignatureDoesNotMatch", "access denied"),
        ("404 NoSuchBucket", "found"),
    ],
)
def test_refusals_end_at_once_and_show_no_secret(
    sent: Sent, s3: S3Server, tmp_path: Path, status: str, message: str
) -> None:
    (tmp_path / "small").write_bytes(b"x")
    left = s3.fail("PUT", "/file", *[status] * 9)
    with pytest.raises(RemoteError, match=message) as caught:
        sent.put(tmp_path / "small")
    assert not sent.pauses and SECRET not in str(caught.value)
    assert len(left) == 8, "nor do the packages ask again"


def test_conditions(sent: Sent) -> None:
    store = sent.store
    first = store.create("lock", b"1")
    assert first is not None and store.create("lock", b"2") is None
    second = store.replace("lock", b"2", first)
    assert second is not None and store.replace("lock", b"3", first) is None
    found = store.claimed("lock")
    assert found is not None and (found.data, found.tag) == (b"2", second) and 0 <= found.age_seconds < 60
    store.remove("lock")
    assert store.replace("lock", b"3", second) is None and store.claimed("lock") is None


def test_a_store_that_knows_no_conditions_is_written_without(sent: Sent, s3: S3Server) -> None:
    s3.fail("PUT", "/lock", "501 NotImplemented")
    tag = sent.store.create("lock", b"1")
    assert tag is not None
    s3.fail("PUT", "/lock", "501 NotImplemented")
    assert sent.store.replace("lock", b"2", "other") is not None
    found = sent.store.claimed("lock")
    assert found is not None and found.data == b"2"


def test_what_may_pass_is_told_apart(sent: Sent, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.fail("PUT", "/it", "503 SlowDown")
    with pytest.raises(TransientError):
        sent.store.put("it", b"x")

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(sent.store._filesystem, "call_s3", broken)
    with pytest.raises(TransientError, match="reset by peer"):
        sent.store.put("it", b"x")


def test_a_loader_reads_a_bucket_as_it_reads_the_directory(
    s3: S3Server, small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    upload_dataset(small_jpeg_dataset, "s3://bucket/to-load", quiet=True)
    s3.fail("GET", "/to-load/shards/00001", "503 SlowDown")
    batches = []
    for dataset in (small_jpeg_dataset, "s3://bucket/to-load"):
        config = LoaderConfig(
            dataset=dataset,
            batch_size=4,
            backend="cpu",
            num_threads=2,
            cache_dir=tmp_path / "cache",
            augment=AugmentConfig(crop_size=40),
        )
        with create_loader(config) as loader:
            batches.append([(images.clone(), labels.tolist()) for _ in range(2) for images, labels in loader])
    local, remote = batches
    assert len(local) == len(remote) > 0
    assert all(torch.equal(a, b) and c == d for (a, c), (b, d) in zip(local, remote, strict=True))


def test_a_store_that_does_not_answer_is_asked_again(s3: S3Server, tmp_path: Path) -> None:
    patience = RetryConfig(tries=20, first_pause_seconds=0.01, read_timeout_seconds=1, min_bytes_per_second=1e6)
    store = S3Store("s3://bucket/stalled", patience)
    assert store.stat("file") is None  # the connection is there, and all packages are imported
    held = s3.hold("PUT", "/stalled/file")
    (tmp_path / "small").write_bytes(b"content")
    try:
        store.put_file("file", tmp_path / "small", SHA256, Attempts("it", patience))
    finally:
        held.release.set()
    assert held.reached.is_set() and store.stat("file") == (7, SHA256)


def test_who_waits_for_a_store_that_does_not_answer_can_be_interrupted(sent: Sent, s3: S3Server) -> None:
    store = S3Store(f"s3://bucket/{sent.store._prefix}", RetryConfig(read_timeout_seconds=1e4))
    store.put("file", b"content")
    held = s3.hold("GET", f"{sent.store._prefix}/file")
    found: list[BaseException] = []

    def read() -> None:
        try:
            b"".join(store.open("file", 0).chunks)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    held.reached.wait(100)
    while thread.is_alive():
        store.interrupt()
        thread.join(0.01)
    held.release.set()
    assert isinstance(found[0], TransientError) and found[0].reason == "interrupted" and not store._asked
    assert b"".join(store.open("file", 0).chunks) == b"content"
