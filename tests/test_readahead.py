"""Records asked of storage ahead of time: which, when, how often, and what is left behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline import readahead
from lmdali.pipeline.batch_queue import Place
from lmdali.pipeline.errors import ShardError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.readahead import Horizon, Readahead, Warmth
from lmdali.pipeline.shard_reader import Located, ShardReader

Batch = tuple[int, int, int]
EPOCH_STEPS = 5


class FakeReadahead:
    """Remembers what it was told."""

    def __init__(self, depth_batches: int) -> None:
        self.depth_batches = depth_batches
        self.told: list[list[int]] = []
        self.forgotten = 0

    def ahead(self, indices: NDArray[np.int64]) -> None:
        self.told.append(indices.tolist())

    def forget(self) -> None:
        self.forgotten += 1


def indices_of(place: Place, step: int) -> NDArray[np.int64]:
    return np.array([place.epoch, place.position, step], np.int64)


def num_steps(position: int) -> int:
    return EPOCH_STEPS - position


def horizon(depth: int, *, across: bool = True) -> tuple[Horizon, FakeReadahead]:
    fake = FakeReadahead(depth)
    return Horizon(indices_of, num_steps, across_epochs=across, readahead=fake), fake  # type: ignore[arg-type]


def walk(epoch: int, position: int, steps: int) -> list[tuple[Place, int]]:
    """Batches from a place on, as a queue that goes on into the next epochs asks for them."""
    place, step, asked = Place(epoch, position), 0, []
    for _ in range(steps):
        if step == num_steps(place.position):
            place, step = Place(place.epoch + 1, 0), 0
        asked.append((place, step))
        step += 1
    return asked


walks = st.lists(st.tuples(st.integers(0, 3), st.integers(0, EPOCH_STEPS - 1), st.integers(1, 12)), max_size=4)


@given(walks=walks, depth=st.integers(1, 9), across=st.booleans())
def test_every_batch_is_announced_before_it_is_due(walks: list[tuple[int, int, int]], depth: int, across: bool) -> None:
    seen, fake = horizon(depth, across=across)
    for part in walks:
        for place, step in walk(*part):
            seen.reach(place, step)
            assert indices_of(place, step).tolist() in fake.told


def test_batches_are_announced_once_in_order_and_no_further_than_asked() -> None:
    seen, fake = horizon(3)
    asked = walk(0, 0, 12)
    for number, (place, step) in enumerate(asked):
        seen.reach(place, step)
        expected = [indices_of(*one).tolist() for one in walk(0, 0, number + 4)]
        assert fake.told == expected
    assert fake.forgotten == 0


def test_without_a_next_epoch_nothing_is_announced_behind_the_last_batch() -> None:
    seen, fake = horizon(4, across=False)
    for place, step in walk(2, 1, num_steps(1)):
        seen.reach(place, step)
    assert fake.told == [indices_of(*one).tolist() for one in walk(2, 1, num_steps(1))]


def test_what_was_announced_is_forgotten_when_the_loader_goes_elsewhere() -> None:
    seen, fake = horizon(2)
    seen.reach(Place(0, 0), 0)
    seen.reach(Place(7, 2), 0)
    assert fake.forgotten == 1
    assert fake.told[-3:] == [[7, 2, 0], [7, 2, 1], [7, 2, 2]]


class FakeReader:
    """Of records of 1,000 bytes; remembers which were asked for."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.manifest: Any = type("Manifest", (), {"file_bytes": 1_000_000, "num_records": 1000})
        self.asked: list[list[int]] = []
        self.threads: set[str] = set()
        self._before = before

    def locate(self, indices: NDArray[np.int64]) -> Located:
        self._before()
        return Located(np.zeros(1, np.uint8), indices, indices + 1)

    def will_need(self, located: Located) -> None:
        self.asked.append(located.starts.tolist())
        self.threads.add(threading.current_thread().name)


def open_readahead(reader: FakeReader, batch_size: int = 4, **options: Any) -> Readahead:
    return Readahead(reader, batch_size, **options)  # type: ignore[arg-type]


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both counts are 0 at the start."""
    monkeypatch.setattr(readahead, "_blocks_read", lambda: 0)
    monkeypatch.setattr(readahead, "_faults", lambda: 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 100
    while not condition():
        assert monotonic() < deadline
        sleep(0.001)


@pytest.mark.parametrize(
    ("batch_size", "depth_bytes", "expected"),
    [(10, 100_000, 10), (10, 95_001, 10), (100, 1, 2), (1, 10_000_000, 64)],
)
def test_depth_is_whole_batches_within_limits(batch_size: int, depth_bytes: int, expected: int) -> None:
    assert open_readahead(FakeReader(), batch_size, depth_bytes=depth_bytes).depth_batches == expected


def test_records_are_asked_for_as_they_lie_by_another_thread() -> None:
    reader = FakeReader()
    ahead = open_readahead(reader)
    ahead.ahead(np.array([7, 3, 9, 1]))
    ahead.ahead(np.array([2, 0]))
    wait_until(lambda: len(reader.asked) == 2)
    thread = ahead._thread
    ahead.close()
    ahead.close()
    assert reader.asked == [[1, 3, 7, 9], [0, 2]]
    assert reader.threads == {"lmdali-readahead"}
    assert thread is not None and not thread.is_alive()


@pytest.mark.usefixtures("counters")
def test_while_all_is_in_memory_a_few_records_of_few_batches_are_asked_for() -> None:
    reader = FakeReader()
    ahead = open_readahead(reader)
    for _ in range(16):
        ahead.ahead(np.arange(8))
    wait_until(lambda: ahead._inbox.is_warm)
    for _ in range(32):
        ahead.ahead(np.arange(8))
    wait_until(lambda: len(reader.asked) == 18)
    ahead.close()
    assert reader.asked[:16] == [list(range(8))] * 16
    assert reader.asked[16:] == [[0, 2, 4, 6]] * 2


def test_what_will_not_be_read_is_not_asked_for() -> None:
    reader = FakeReader()
    ahead = open_readahead(reader, not_read=lambda indices: indices > 5)
    ahead.ahead(np.array([7, 3, 9, 1]))
    wait_until(lambda: bool(reader.asked))
    ahead.close()
    assert reader.asked == [[1, 3]]


def test_an_error_is_left_to_the_loader_and_the_next_batch_is_asked_for_all_the_same() -> None:
    errors = [ShardError("a shard is missing")]

    def before() -> None:
        if errors:
            raise errors.pop()

    reader = FakeReader(before)
    ahead = open_readahead(reader)
    ahead.ahead(np.array([1]))
    ahead.ahead(np.array([2]))
    wait_until(lambda: bool(reader.asked))
    ahead.close()
    assert reader.asked == [[2]]


def test_what_was_forgotten_or_is_long_past_is_not_asked_for() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before() -> None:
        begun.set()
        assert go_on.wait(100)

    reader = FakeReader(before)
    ahead = open_readahead(reader, depth_bytes=1)
    ahead.ahead(np.array([1]))
    assert begun.wait(100)  # the thread stands still with it: taken out of the inbox is not yet asked for
    ahead.ahead(np.array([2]))
    ahead.forget()
    for number in range(3, 12):  # 2 batches deep: of these nine, the loader is past the first ones
        ahead.ahead(np.array([number]))
    go_on.set()
    wait_until(lambda: [11] in reader.asked)
    ahead.close()
    assert [1] in reader.asked and [2] not in reader.asked and [3] not in reader.asked
    assert reader.asked[-5:] == [[7], [8], [9], [10], [11]]


def test_a_forgotten_readahead_ends_its_thread() -> None:
    ahead = open_readahead(FakeReader())
    ahead.ahead(np.array([1]))
    thread = ahead._thread
    assert thread is not None and thread.is_alive()
    del ahead
    gc.collect()
    thread.join(100)
    assert not thread.is_alive()


def test_an_interrupt_while_its_thread_starts_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # As Ctrl-C in a notebook, where the loader is iterated again: a second thread started, and `close` waited for ever
    # for the one of both that heard of nothing.
    start, started = threading.Thread.start, list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        if len(started) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    ahead = open_readahead(FakeReader())
    with pytest.raises(KeyboardInterrupt):
        ahead.ahead(np.array([1]))
    ahead.ahead(np.array([2]))
    del ahead
    gc.collect()
    for thread in started:
        thread.join(100)
        assert not thread.is_alive()


def test_a_forked_child_asks_for_nothing_and_closes_at_once() -> None:
    ahead = open_readahead(FakeReader())
    ahead.ahead(np.array([1]))
    child = os.fork()
    if child == 0:
        ahead.ahead(np.array([2]))
        ahead.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ahead.close()


def quiet(warmth: Warmth, batches: int, faults: int = 0) -> None:
    for _ in range(batches):
        warmth.learn(0, faults)


@pytest.mark.usefixtures("counters")
def test_storage_is_warm_when_advice_has_read_nothing_for_a_while() -> None:
    warmth, records = Warmth(), np.arange(100)
    quiet(warmth, 15)
    assert not warmth.is_warm and len(warmth.choose(records)) == 100
    quiet(warmth, 1)
    assert warmth.is_warm and warmth.choose(records).tolist() == [0, 25, 50, 75]
    assert warmth.choose(records[:3]).tolist() == [0, 1, 2]


@pytest.mark.usefixtures("counters")
def test_storage_is_cold_again_when_a_sampled_record_had_to_be_read() -> None:
    warmth = Warmth()
    quiet(warmth, 16)
    warmth.learn(8, 0)
    assert not warmth.is_warm
    for _ in range(15):
        warmth.learn(8, 0)
    assert not warmth.is_warm
    warmth.learn(8, 0)
    assert warmth.is_warm


@pytest.mark.usefixtures("counters")
def test_whoever_waits_for_pages_while_all_seems_warm_makes_it_harder_to_seem_so() -> None:
    warmth = Warmth()
    for faults, needed in enumerate((16, 32, 64), start=1):
        quiet(warmth, needed - 1, faults - 1)
        assert not warmth.is_warm
        quiet(warmth, 1, faults - 1)
        assert warmth.is_warm
        warmth.learn(0, faults)
        assert not warmth.is_warm


@pytest.mark.usefixtures("counters")
def test_where_nobody_counts_blocks_every_record_is_asked_for() -> None:
    warmth = Warmth()
    for _ in range(100):
        warmth.learn(None, 0)
    assert not warmth.is_warm


def is_resident(path: Path, at: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def drop_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_a_record_that_was_announced_comes_into_memory_by_itself(
    tmp_path: Path, make_dataset: Callable[..., Path], small_source: Path
) -> None:
    dataset = make_dataset(small_source, tmp_path / "cold", shard_sources=40, encoding="raw")
    manifest = load_manifest(dataset)
    reader = ShardReader(dataset, manifest)
    path = reader.data_file(manifest.shards[0].name)
    located = reader.locate(np.array([20], np.int64))
    # A file's own offsets: the first shard begins at 0 of all bytes.
    middle = int(located.starts[0] + located.stops[0]) // 2
    del located
    reader.close()
    gc.collect()
    drop_pages(path)
    try:
        if is_resident(path, middle):
            pytest.skip("this file system keeps its pages in memory (tmpfs, overlay): nothing is cold here")
    except OSError as error:
        pytest.skip(f"this file system does not tell what is in memory ({error})")
    ahead = Readahead(reader, 1)
    ahead.ahead(np.array([20], np.int64))
    wait_until(lambda: is_resident(path, middle))
    ahead.close()
    reader.close()
