"""A loader of a remote dataset: the same batches as from a directory, and only the shards it needs."""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_files import our_threads
from remote_server import Fault, RemoteServer, serving

from lmdali.pipeline import decode_choice, remote_dataset, remote_retry
from lmdali.pipeline import loader as loader_module
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.dataset_place import open_reader
from lmdali.pipeline.errors import ConfigError, RecordError, RemoteError, ShardError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import Manifest, ShardInfo, load_manifest
from lmdali.pipeline.shard_cache import ShardCache
from lmdali.pipeline.shard_header import read_header


@pytest.fixture
def server(small_jpeg_dataset: Path) -> Iterator[RemoteServer]:
    with serving(small_jpeg_dataset) as running:
        yield running


@pytest.fixture
def manifest(small_jpeg_dataset: Path) -> Manifest:
    return load_manifest(small_jpeg_dataset)


def config(dataset: Path | str, cache: Path | None = None, **fields: Any) -> LoaderConfig:
    augment = AugmentConfig(crop_size=40)
    options: dict[str, Any] = {"batch_size": 4, "backend": "cpu", "num_threads": 2, "cache_dir": cache, **fields}
    return LoaderConfig(dataset=dataset, augment=augment, **options)


def delivered(given: LoaderConfig, epochs: int = 2, **place: Any) -> list[tuple[torch.Tensor, list[int], list[int]]]:
    with create_loader(given, **place) as loader:
        return [
            (images.clone(), labels.tolist(), batch.indices.tolist())
            for _ in range(epochs)
            for batch in loader
            for images, labels in [batch]
        ]


def equal(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(found, expected, strict=True)
    )


def block_room(manifest: Manifest, shards: int) -> int:
    return sum(sorted(info.file_bytes for info in manifest.shards)[-shards:])


@pytest.mark.parametrize(
    "order", [{"order": "shuffled"}, {"order": "sequential"}, {"order": "block", "block_shards": 2}], ids=str
)
def test_batches_are_those_of_the_directory(
    order: dict[str, Any], server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest
) -> None:
    found = delivered(config(server.address, tmp_path / "cache", **order))
    assert equal(found, delivered(config(small_jpeg_dataset, **order)))
    assert sorted(server.shards_asked()) == [info.name for info in manifest.shards], "each once, in two epochs"


def test_a_cache_of_two_blocks_is_enough_and_never_exceeded(
    server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest
) -> None:
    order: dict[str, Any] = {"order": "block", "block_shards": 1, "batch_size": 1, "prefetch": 1}
    limit = block_room(manifest, 2)
    found, expected = [], delivered(config(small_jpeg_dataset, **order), epochs=3)
    with create_loader(config(server.address, tmp_path / "cache", cache_bytes=limit, **order)) as loader:
        for _ in range(3):
            for batch in loader:
                found.append((batch.images.clone(), batch.labels.tolist(), batch.indices.tolist()))
                assert ShardCache(tmp_path / "cache", limit).used_bytes() <= limit
    assert equal(found, expected)
    assert len(server.shards_asked()) > len(manifest.shards)
    left = ShardCache(tmp_path / "cache", limit)
    assert left.clear()[1] == 0 and not left.entries()


def test_a_second_run_fetches_nothing(server: RemoteServer, tmp_path: Path) -> None:
    first = delivered(config(server.address, tmp_path / "cache"))
    before = len(server.shards_asked())
    assert equal(delivered(config(server.address, tmp_path / "cache")), first)
    assert len(server.shards_asked()) == before


@pytest.mark.parametrize("end", ["raise ValueError", "del batches, loader"])
def test_a_program_ends_while_its_server_says_nothing(end: str, server: RemoteServer, tmp_path: Path) -> None:
    """As after any error, where nobody has closed the loader: its threads wait for a shard, and must not be awaited."""
    for number in range(2, 5):
        server.always(f"shards/{number:05d}/data.mdb", Fault(pause_seconds=1000))
    script = f"""
import sys
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.loader import LoaderConfig, create_loader

loader = create_loader(LoaderConfig(dataset=sys.argv[1], batch_size=4, augment=AugmentConfig(crop_size=40),
                                    backend="cpu", num_threads=2, cache_dir=sys.argv[2], order="sequential"))
batches = iter(loader)
print(len(next(batches).labels))
{end}
"""
    command = [sys.executable, "-c", script, server.address, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "4\n" and done.returncode == (1 if end.startswith("raise") else 0), done.stderr


def test_a_synthetic_loader_fetches_no_shard(server: RemoteServer, tmp_path: Path) -> None:
    assert delivered(config(server.address, tmp_path / "cache", backend="synthetic"))
    assert server.shards_asked() == []


def test_where_to_decode_is_measured_with_the_first_shards_which_are_asked_for_once(
    server: RemoteServer, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, for which a CPU stands in here: both ways are opened and measured, each over many batches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decode_choice, "_SAMPLE_RECORDS", 4)
    monkeypatch.setattr(loader_module, "fixed_choice", lambda *_, **__: None)
    monkeypatch.setattr(loader_module, "measured_choice", partial(decode_choice.measured_choice, seconds=0.05))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    given = config(server.address, tmp_path / "cache", backend="auto", order="block", block_shards=1)
    with create_loader(given) as loader:
        assert "images/s on CPU threads" in loader.backend_reason
        counts = loader.fetch_counts
    assert len(server.shards_asked()) == 1
    assert counts is not None and counts.misses == 1 and counts.hits <= 1, "by the other way"


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.005)


def test_what_shards_cost_is_counted(
    server: RemoteServer, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_shards, publish = len(manifest.shards), ShardCache.publish

    def publish_once_it_is_waited_for(self: ShardCache, info: ShardInfo) -> None:
        # However late the thread is that needs the first shard: it is not there before.
        wait_until(lambda: info.name != "00000" or loader._stream.fetcher._state.demand.waiting[0])  # type: ignore[union-attr]
        publish(self, info)

    monkeypatch.setattr(ShardCache, "publish", publish_once_it_is_waited_for)
    with create_loader(config(server.address, tmp_path / "cache", order="sequential")) as loader:
        batches = iter(loader)
        next(batches)
        assert loader.fetch_counts is not None and loader.fetch_counts.waits > 0
        for _ in batches:
            pass
        first = loader.fetch_counts
    assert (first.hits, first.misses, first.fetched_bytes) == (0, num_shards, manifest.file_bytes)
    assert first.fetch_seconds > 0 and first.wait_seconds > 0
    with create_loader(config(server.address, tmp_path / "cache", order="sequential")) as loader:
        for _ in loader:
            pass
        second = loader.fetch_counts
    assert second is not None
    assert (second.hits, second.misses, second.fetched_bytes, second.fetch_seconds) == (num_shards, 0, 0, 0.0)


def test_a_directory_has_no_such_counts(small_jpeg_dataset: Path) -> None:
    with create_loader(config(small_jpeg_dataset)) as loader:
        assert loader.fetch_counts is None


def test_ranks_of_a_machine_share_what_they_fetch(
    server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest
) -> None:
    order: dict[str, Any] = {"order": "block", "block_shards": 2, "batch_size": 2}
    for rank in range(2):
        found = delivered(config(server.address, tmp_path / "cache", **order), epochs=1, rank=rank, world_size=2)
        assert equal(found, delivered(config(small_jpeg_dataset, **order), epochs=1, rank=rank, world_size=2))
    assert sorted(server.shards_asked()) == [info.name for info in manifest.shards]


def test_machines_fetch_only_the_shards_of_their_nodes(
    server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest
) -> None:
    order: dict[str, Any] = {"order": "block", "block_shards": 1, "batch_size": 2, "block_nodes": 2}
    asked, samples, together = [], [], delivered(config(small_jpeg_dataset, **{**order, "batch_size": 4}), epochs=3)
    for rank in range(2):
        server.requests.clear()
        found = delivered(
            config(server.address, tmp_path / f"machine{rank}", **order), epochs=3, rank=rank, world_size=2
        )
        asked.append(server.shards_asked())
        samples.append([indices for _, _, indices in found])
    assert [sorted(a + b) for a, b in zip(*samples, strict=True)] == [sorted(indices) for _, _, indices in together]
    assert all(len(set(names)) == len(names) for names in asked), "each once, in three epochs"
    assert len(asked[0]) + len(asked[1]) <= len(manifest.shards) + 1
    assert set(asked[0]) | set(asked[1]) == {info.name for info in manifest.shards}


@pytest.mark.parametrize("order", ["block", "sequential"])
def test_a_resumed_epoch_fetches_only_what_is_still_needed(
    order: Any, server: RemoteServer, tmp_path: Path, manifest: Manifest
) -> None:
    fields: dict[str, Any] = {"order": order, "block_shards": 2, "drop_last": False}
    with create_loader(config(server.address, tmp_path / "first", **fields)) as loader:
        batches = iter(loader)
        for _ in range(6):
            next(batches)
        state = loader.state_dict()
        rest = [(batch.images.clone(), batch.indices) for batch in batches]
    server.requests.clear()
    with create_loader(config(server.address, tmp_path / "second", **fields)) as loader:
        loader.load_state_dict(state)
        resumed = [(batch.images.clone(), batch.indices) for batch in stop_before_next_epoch(loader)]
    assert len(rest) == len(resumed) == 4
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(rest, resumed, strict=True))
    first_records = np.cumsum([0, *(info.num_records for info in manifest.shards)])
    records = torch.cat([indices for _, indices in resumed]).numpy()
    needed = {manifest.shards[n].name for n in np.searchsorted(first_records, records, side="right") - 1}
    asked = server.shards_asked()
    assert needed < {info.name for info in manifest.shards}
    assert needed <= set(asked) and len(asked) == len(set(asked))
    if order == "sequential":  # the other one goes on into its next epoch
        assert set(asked) == needed


def stop_before_next_epoch(loader: Any) -> Iterator[Any]:
    yield from loader


def test_wrong_bytes_are_never_delivered(
    server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest, no_pauses: None
) -> None:
    for info in manifest.shards:
        server.once(f"shards/{info.name}/data.mdb", Fault(flip=9000), Fault(503), Fault(short_by=7))
    assert equal(delivered(config(server.address, tmp_path / "cache")), delivered(config(small_jpeg_dataset)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(flip=9000), "sha256 is"),
        (Fault(404), "not found"),
        (Fault(403), "access denied"),
        (Fault(500), "HTTP 500; given up"),
        (Fault(body=b"<html>"), "6 bytes, manifest.json says"),
        (Fault(302, {"Location": "/shards/00002/data.mdb"}), "redirected more than"),
    ],
    ids=["flip", "404", "403", "500", "html", "loop"],
)
def test_a_shard_that_cannot_be_had_is_named_and_not_kept(
    fault: Fault, message: str, server: RemoteServer, tmp_path: Path, manifest: Manifest, no_pauses: None
) -> None:
    server.always("shards/00002/data.mdb", fault)
    before = our_threads()
    loader = create_loader(config(server.address, tmp_path / "cache", order="sequential"))
    with pytest.raises(RemoteError, match=rf"{server.address}/shards/00002/data\.mdb: .*{message}"):
        for _ in loader:
            pass
    loader.close()
    gc.collect()
    assert our_threads() <= before
    # Of a later shard a part may be there: it was on its way, and the next run goes on with it.
    entries = ShardCache(tmp_path / "cache").entries()
    assert manifest.shards[2].sha256 not in {entry.sha256 for entry in entries}


def test_a_dataset_that_changes_is_an_error(
    small_jpeg_dataset: Path, small_raw_dataset: Path, tmp_path: Path, no_pauses: None
) -> None:
    served = tmp_path / "served"
    shutil.copytree(small_jpeg_dataset, served)
    with serving(served) as server, create_loader(config(server.address, tmp_path / "cache")) as loader:
        shutil.rmtree(served)
        shutil.copytree(small_raw_dataset, served)
        with pytest.raises(RemoteError, match=r"changed since it was opened: its manifest had the digest [0-9a-f]{64}"):
            for _ in loader:
                pass


def test_a_cache_that_is_too_small_is_refused_with_numbers(
    server: RemoteServer, tmp_path: Path, manifest: Manifest
) -> None:
    limit = manifest.file_bytes - 1
    with pytest.raises(ConfigError, match=rf"room for {limit} bytes.*needs {manifest.file_bytes}: "):
        create_loader(config(server.address, tmp_path / "cache", cache_bytes=limit))
    with pytest.raises(ConfigError, match="block"):
        limit = block_room(manifest, 1)
        create_loader(config(server.address, tmp_path / "cache", cache_bytes=limit, order="block", block_shards=1))
    room = {"cache_bytes": block_room(manifest, 2), "order": "block", "block_shards": 1}
    given = config(server.address, tmp_path / "cache", batch_size=2, prefetch=9, **room)
    with pytest.raises(ConfigError, match="lower prefetch from 9 to ") as refused:
        create_loader(given)
    most = int(str(refused.value).partition("from 9 to ")[2].partition(",")[0])
    create_loader(replace(given, prefetch=most)).close()
    with pytest.raises(ConfigError, match=f"lower prefetch from {most + 1} to {most}, "):
        create_loader(replace(given, prefetch=most + 1))
    with pytest.raises(ConfigError, match="room for 10 bytes of shards, the largest shard"):
        create_loader(config(server.address, tmp_path / "cache", cache_bytes=10, order="block", block_shards=1))
    assert not server.shards_asked()


@pytest.mark.parametrize("change", ["rot", "cut"])
def test_a_shard_that_is_damaged_in_the_cache_is_fetched_again(
    change: str, server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest
) -> None:
    """Half of it is seen when it is opened; wrong bytes in a record when their CRC is compared."""
    given = config(server.address, tmp_path / "cache", order="sequential", drop_last=False)
    expected = delivered(given, epochs=1)
    path = tmp_path / "cache" / "shards" / manifest.shards[1].sha256 / "data.mdb"
    content = path.read_bytes()
    local = open_reader(small_jpeg_dataset)
    record = local.read(manifest.shards[0].num_records, lambda record: bytes(record.data))
    local.close()
    at = content.index(record) + len(record) // 2
    path.chmod(0o644)
    path.write_bytes(content[:at] if change == "cut" else content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    server.requests.clear()
    if change == "rot":
        with pytest.raises(RecordError, match="damaged in the cache: it is removed, and the next run fetches it again"):
            delivered(given, epochs=1)
        assert not path.exists() and not server.shards_asked()
    assert equal(delivered(given, epochs=1), expected)
    assert server.shards_asked() == [manifest.shards[1].name]


def test_a_shard_whose_tree_is_damaged_in_the_cache_is_fetched_again(
    server: RemoteServer, tmp_path: Path, manifest: Manifest
) -> None:
    """Its size and its header are right, so only mapping it shows the damage."""
    given = config(server.address, tmp_path / "cache", order="sequential", drop_last=False)
    expected = delivered(given, epochs=1)
    path = tmp_path / "cache" / "shards" / manifest.shards[1].sha256 / "data.mdb"
    content = bytearray(path.read_bytes())
    root = read_header(path).root_page
    content[root * 4096 + 8 : (root + 1) * 4096] = bytes(4088)
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(ShardError, match="it is removed, and the next run fetches it again"):
        delivered(given, epochs=1)
    server.requests.clear()
    assert equal(delivered(given, epochs=1), expected)
    assert server.shards_asked() == [manifest.shards[1].name]


def test_an_address_without_a_dataset_is_told(server: RemoteServer, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=rf"{server.address}/nothing/manifest\.json: not found"):
        create_loader(config(f"{server.address}/nothing", tmp_path / "cache"))


def test_statistics_may_come_from_another_address(
    server: RemoteServer, small_jpeg_dataset: Path, small_raw_dataset: Path, tmp_path: Path
) -> None:
    with serving(small_raw_dataset) as other:
        found = delivered(config(other.address, tmp_path / "cache", basis=server.address))
    assert equal(found, delivered(config(small_raw_dataset, basis=small_jpeg_dataset)))


def test_arrays_that_are_kept_stay_readable(server: RemoteServer, tmp_path: Path, manifest: Manifest) -> None:
    """What was cut out of a shard holds it, also when the shard is no longer on the list and the cache is full."""
    limit = block_room(manifest, 3)
    with create_loader(
        config(server.address, tmp_path / "cache", cache_bytes=limit, order="sequential", batch_size=1, prefetch=1)
    ) as loader:
        reader = loader._stream
        assert reader is not None
        located = reader.locate(np.array([0]))
        kept = located.bytes[located.starts[0] : located.stops[0]]
        before = kept.tobytes()
        del located
        for batch in loader:
            assert kept.tobytes() == before
            if int(batch.indices[0]) > 20:
                break
        held = manifest.shards[0].sha256
        assert held in {entry.sha256 for entry in ShardCache(tmp_path / "cache").entries()}


@pytest.mark.parametrize(
    "fault", [Fault(503, {"Retry-After": "200"}), Fault(pause_seconds=1000)], ids=["pause", "silence"]
)
def test_closing_does_not_wait_for_a_server_that_hangs(
    fault: Fault,
    server: RemoteServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(remote_dataset, "RetryConfig", partial(remote_retry.RetryConfig, read_timeout_seconds=1e4))
    server.always("shards/00003/data.mdb", fault)
    loader = create_loader(config(server.address, tmp_path / "cache", order="sequential"))
    next(iter(loader))
    wait_until(lambda: server.count("shards/00003/data.mdb"))
    loader.close()
    told = ["HTTP 503; trying again"] if fault.status == 503 else []
    assert len(caplog.records) == len(told) and all(words in caplog.text for words in told)


@pytest.mark.parametrize("how", ["interrupt", "again"])
def test_nothing_but_the_consumer_waits_for_a_server_that_hangs(
    how: str, server: RemoteServer, tmp_path: Path, manifest: Manifest
) -> None:
    """Ctrl-C, and an iteration that begins anew elsewhere, give up batches whose shard may take minutes."""
    server.always("shards/00003/data.mdb", Fault(503, {"Retry-After": "200"}))
    with create_loader(config(server.address, tmp_path / "cache", order="sequential", prefetch=8)) as loader:
        first = next(iter(loader)).indices.tolist()
        wait_until(lambda: server.count("shards/00003/data.mdb"))
        if how == "again":
            assert next(iter(loader)).indices.tolist() == first
        else:

            def interrupt() -> None:
                wait_until(lambda: given == ready)
                time.sleep(0.5)  # it waits for the next one by then, or will find the signal on its way to that
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

            given, ready = 0, sum(info.num_records for info in manifest.shards[:3]) // 4
            with pytest.raises(KeyboardInterrupt):
                threading.Thread(target=interrupt, daemon=True).start()
                for _ in loader:
                    given += 1
            assert next(iter(loader)).indices.tolist() == first
        assert server.shards_asked().count("00003") == 1, "the second time is 200 s later"


def test_a_loader_that_is_dropped_unclosed_lets_its_threads_end_and_its_shards_go(
    server: RemoteServer, tmp_path: Path
) -> None:
    server.always("shards/00003/data.mdb", Fault(503, {"Retry-After": "200"}))
    before = our_threads()
    loader = create_loader(config(server.address, tmp_path / "cache", order="sequential"))
    next(iter(loader))
    threads = our_threads() - before
    assert threads
    gone = weakref.ref(loader)
    del loader
    while gone() is not None:  # another thread may be collecting, and then this one does nothing
        gc.collect()
        time.sleep(0.01)
    # A thread that waited has ended with an error, whose traceback holds the pool until it is collected, too.
    while any(thread.is_alive() for thread in threads):
        gc.collect()
        time.sleep(0.01)
    _, in_use = ShardCache(tmp_path / "cache").clear()
    assert in_use == 0


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_retry.Attempts, "failed", without_pause(remote_retry.Attempts.failed))


def without_pause(failed: Any) -> Any:
    def quick(self: Any, error: Any) -> None:
        self._clock = remote_retry.Clock(sleep=lambda _: None)
        failed(self, error)

    return quick
