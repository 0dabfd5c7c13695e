"""What a loader leaves behind: nothing. Threads, descriptors, memory, and other processes."""

from __future__ import annotations

import copy
import gc
import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from open_files import open_descriptors, our_threads
from torch.utils.data import DataLoader

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.cpu import CpuBackend
from lmdali.pipeline.errors import ConfigError, MachineError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.patches import PatchCutter, Samples


def config(dataset: Path, **fields: Any) -> LoaderConfig:
    augment = AugmentConfig(crop_size=40)
    return LoaderConfig(dataset=dataset, batch_size=8, augment=augment, backend="cpu", num_threads=2, **fields)


def epoch_hash(dataset: Path) -> str:
    """sha256 over the batches of epoch 0."""
    digest = hashlib.sha256()
    with create_loader(config(dataset)) as loader:
        for images, labels in loader:
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_a_hundred_aborted_loaders_leave_no_thread_and_no_descriptor(
    encoding: str, small_jpeg_dataset: Path, small_raw_dataset: Path
) -> None:
    dataset = small_jpeg_dataset if encoding == "jpeg" else small_raw_dataset

    def cycle() -> None:
        loader = create_loader(config(dataset))
        next(iter(loader))
        loader.close()

    cycle()
    gc.collect()
    threads, descriptors, mappings = len(our_threads()), open_descriptors(), mapped_shards()
    for _ in range(100):
        cycle()
    gc.collect()
    assert len(our_threads()) <= threads
    assert open_descriptors() < descriptors + 100
    assert mapped_shards() <= mappings


def mapped_shards() -> int:
    return Path("/proc/self/maps").read_text().count("data.mdb")


def test_a_closed_loader_is_freed_without_the_garbage_collector(small_jpeg_dataset: Path) -> None:
    """Its buffers and cached images are gigabytes: training loops open and close a loader for each validation."""
    gc.disable()
    try:
        loader = create_loader(config(small_jpeg_dataset, decoded_cache_bytes=100_000))
        iterator = iter(loader)
        next(iterator)
        loader.close()
        assert next(iterator, None) is None
        gone = weakref.ref(loader)
        del iterator, loader
        assert gone() is None
    finally:
        gc.enable()


def test_the_collector_may_find_a_dropped_loader_in_one_of_its_own_threads(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it must not wait for the batch that this thread works on: nothing would ever be collected again."""
    dropped, collected, cuts, cut = threading.Event(), threading.Event(), count(), PatchCutter.cut

    def cut_and_collect(self: PatchCutter, samples: Samples) -> None:
        if next(cuts) == 2:
            dropped.wait(100)
            for _ in range(100):  # while another thread collects, and may be interrupted at it, this does nothing
                gc.collect()
                if gone() is None:
                    break
                time.sleep(0.05)
            collected.set()
        cut(self, samples)

    monkeypatch.setattr(PatchCutter, "cut", cut_and_collect)
    gc.disable()
    try:
        # One thread: of two, one may take its batch and be kept from beginning with it, and the third to begin be
        # another than the third batch, which is the one that nobody waits for.
        loader = create_loader(replace(config(small_jpeg_dataset, prefetch=1), num_threads=1))
        iterator = iter(loader)
        gone = weakref.ref(loader)
        next(iterator), next(iterator)  # the third batch is begun: a batch of 8 is one task
        del iterator, loader
        dropped.set()
        assert collected.wait(100)
        assert gone() is None
    finally:
        gc.enable()


def test_another_thread_may_close_a_loader_that_is_iterated(small_jpeg_dataset: Path) -> None:
    """As where a thread fills somebody's queue, and the program is done before it."""
    loader = create_loader(config(small_jpeg_dataset))
    begun, errors = threading.Event(), []

    def iterate() -> None:
        try:
            while True:
                for _ in loader:
                    begun.set()
        except ConfigError as error:
            errors.append(str(error))

    thread = threading.Thread(target=iterate)
    thread.start()
    assert begun.wait(100)
    loader.close()
    thread.join(100)
    assert not thread.is_alive()
    assert errors == ["this loader was closed: make another with create_loader"]


@pytest.mark.parametrize("ends", [False, True])
def test_a_signal_handler_may_close_the_loader_that_it_interrupts(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """It runs in the thread that waits for a batch: that one comes to its end, and no other."""
    threads_before = our_threads()
    loader, finish = create_loader(config(small_jpeg_dataset)), CpuBackend.finish
    taken: list[Batch] = []

    def handle(*_: object) -> None:
        loader.close()
        if ends:
            sys.exit(3)

    def interrupted(self: CpuBackend, pending: Any) -> Batch:
        signal.raise_signal(signal.SIGUSR1)
        return finish(self, pending)

    monkeypatch.setattr(CpuBackend, "finish", interrupted)
    handled_before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(SystemExit) if ends else nullcontext():
            taken += loader
    finally:
        signal.signal(signal.SIGUSR1, handled_before)
    assert len(taken) == (0 if ends else 1)
    assert our_threads() <= threads_before
    with pytest.raises(ConfigError, match="this loader was closed"):
        iter(loader)


def test_threads_share_an_iteration_and_each_batch_goes_to_one(small_jpeg_dataset: Path) -> None:
    with create_loader(config(small_jpeg_dataset)) as loader:
        expected = sorted(index for batch in loader for index in batch.indices.tolist())
        loader.set_epoch(0)
        iterator = iter(loader)
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda _: [i for batch in iterator for i in batch.indices.tolist()], range(4)))
        assert sorted(index for part in parts for index in part) == expected
        assert loader.epoch == 1


def test_memory_does_not_grow_over_twenty_epochs(small_jpeg_dataset: Path) -> None:
    """In processes of their own, whose memory nobody else uses; forked from one that has imported all of it."""
    script = """
import os, sys
from pathlib import Path
from lmdali.pipeline import jpeg_decoder, patches
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.loader import LoaderConfig, create_loader

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def growth(**options):
    config = LoaderConfig(dataset=sys.argv[1], batch_size=8, augment=AugmentConfig(crop_size=40), backend="cpu",
                          num_threads=2, **options)
    with create_loader(config) as loader:
        # All buffers that can ever be in use at once: threads ahead of a consumer that was kept waiting fill them.
        held, after = [], []
        while len(held) < loader.prefetch + 3:
            held.extend(loader)
        del held
        for _ in range(20):
            for batch in loader:
                pass
            after.append(resident_bytes())
    return max(after[10:]) - max(after[:10])

for options in ({}, {"decoded_cache_bytes": 100_000}, {"dtype": "bfloat16"}):
    if os.fork() == 0:
        print(growth(**options), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, options
"""
    command = [sys.executable, "-c", script, str(small_jpeg_dataset)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    # Ten more epochs are 46 batches of 154 kB: one of them kept per epoch would be seen.
    grown = [int(line) for line in done.stdout.splitlines()]
    assert len(grown) == 3 and max(grown) < 500_000, grown


def _send_hash(dataset: Path, answer: Any) -> None:
    answer.put(epoch_hash(dataset))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_started_process_reads_what_its_parent_is_reading(method: str, small_jpeg_dataset: Path) -> None:
    expected = epoch_hash(small_jpeg_dataset)
    context = multiprocessing.get_context(method)
    with create_loader(config(small_jpeg_dataset)) as loader:
        next(iter(loader))
        answer = context.Queue()
        child = context.Process(target=_send_hash, args=(small_jpeg_dataset, answer))
        child.start()
        assert answer.get(timeout=250) == expected
        child.join()


def test_a_loader_is_not_copied_or_sent_and_its_config_is(small_jpeg_dataset: Path) -> None:
    asked = config(small_jpeg_dataset)
    with create_loader(asked) as loader:
        for thing in (loader, iter(loader)):
            for send in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(ConfigError, match="pass the LoaderConfig, and call create_loader in the process"):
                    send(thing)
        assert len(list(loader)) == len(loader)
    assert pickle.loads(pickle.dumps(asked)) == copy.deepcopy(asked) == asked


@pytest.mark.parametrize("refused", ["lmdali-cpu", "lmdali-readahead", "lmdali-plan"])
def test_threads_that_the_system_refuses(
    refused: str, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that make batches are missed, in words; those that work ahead are not. Later there may be some again."""
    expected, start = epoch_hash(small_jpeg_dataset), threading.Thread.start

    def start_some(thread: threading.Thread) -> None:
        if thread.name.startswith(refused):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    before = our_threads()
    if refused != "lmdali-cpu":
        assert epoch_hash(small_jpeg_dataset) == expected
    else:
        with create_loader(config(small_jpeg_dataset)) as loader:
            with pytest.raises(MachineError, match=r"refuses another thread \(can't start new thread\): .*num_threads"):
                next(iter(loader))
            monkeypatch.undo()
            assert len(list(loader)) == len(loader)
    assert our_threads() <= before


NO_ITEMS = "a DatasetLoader has no item 0, for it yields batches: iterate over it"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NO_ITEMS),
        ({"batch_size": None}, NO_ITEMS),
        ({"num_workers": 1, "multiprocessing_context": "fork"}, NO_ITEMS),
        ({"num_workers": 1, "multiprocessing_context": "spawn"}, "needs no torch.utils.data.DataLoader around it"),
    ],
    ids=str,
)
def test_a_torch_data_loader_around_a_loader_is_told_to_go(
    options: dict[str, Any], expected: str, small_jpeg_dataset: Path
) -> None:
    with create_loader(config(small_jpeg_dataset)) as loader:
        outer: DataLoader[Any] = DataLoader(loader, **options)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=expected):
            next(iter(outer))
        assert len(list(loader)) == len(loader)


def in_forked_child(work: Any) -> bytes:
    """What `work` returns in a child; no pytest there, and whatever happens ends in _exit."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(send, work())
        except BaseException as error:
            os.write(send, repr(error).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return found


def test_a_forked_process_reads_what_its_parent_is_reading(small_jpeg_dataset: Path) -> None:
    expected = epoch_hash(small_jpeg_dataset)
    with create_loader(config(small_jpeg_dataset)) as loader:
        iterator = iter(loader)
        next(iterator)
        assert in_forked_child(lambda: epoch_hash(small_jpeg_dataset).encode()) == expected.encode()
        assert len(list(iterator)) == len(loader) - 1


def test_a_loader_does_not_work_in_a_forked_process_and_says_so(small_jpeg_dataset: Path) -> None:
    with create_loader(config(small_jpeg_dataset)) as loader:
        iterator = iter(loader)
        next(iterator)

        def go_on() -> bytes:
            with pytest.raises(ConfigError, match=r"made in process \d+, used in \d+: call create_loader in the"):
                next(iterator)
            with pytest.raises(ConfigError, match="create_loader"):
                iter(loader)
            loader.close()
            return b"refused"

        assert in_forked_child(go_on) == b"refused"
        assert len(list(iterator)) == len(loader) - 1
