"""The built-in dataset as a whole: same bytes from any number of workers, balanced, odd and broken files as told."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lmdali.pipeline.errors import ConfigError, InputError, StorageError
from lmdali.tools.filekinds import BROKEN, ODD
from lmdali.tools.pictures import CLASS_NAMES, DatasetSummary, draw_file, draw_size, plan_split, write_dataset

NUM_TRAIN, NUM_VAL = 43, 12


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> DatasetSummary:
    return write_dataset(tmp_path_factory.mktemp("pictures"), num_train=NUM_TRAIN, num_val=NUM_VAL, workers=1)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def decoded(data: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_worker_processes_write_the_same_bytes_as_one(summary: DatasetSummary, tmp_path: Path) -> None:
    again = write_dataset(tmp_path, num_train=NUM_TRAIN, num_val=NUM_VAL, workers=2)
    assert files_of(tmp_path) == files_of(summary.root)
    assert (again.num_bytes, again.odd_files, again.broken_files) == (
        summary.num_bytes,
        summary.odd_files,
        summary.broken_files,
    )


def test_a_picture_depends_on_seed_split_class_and_number_alone() -> None:
    def digest(split: str, place: int, seed: int, num_files: int) -> str:
        plan = plan_split(split, num_files, seed)[place]
        return hashlib.sha256(draw_file(plan, seed)[1]).hexdigest()

    place = next(
        i for i in range(12, 60) if plan_split("train", 60, 0)[i].kind is None is plan_split("val", 60, 0)[i].kind
    )
    first = digest("train", place, 0, 60)
    assert digest("train", place, 0, 60) == first
    assert (
        len({first, digest("val", place, 0, 60), digest("train", place, 1, 60), digest("train", place + 10, 0, 80)})
        == 4
    )


def test_the_tree_is_one_folder_per_class_and_balanced(summary: DatasetSummary) -> None:
    assert summary.class_names == CLASS_NAMES == tuple(sorted(CLASS_NAMES))
    assert len(CLASS_NAMES) == 10
    assert sorted(path.name for path in summary.root.iterdir()) == ["train", "val"]
    for split, expected in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        counts = Counter(path.parent.name for path in (summary.root / split).rglob("*") if path.is_file())
        assert sorted(counts) == list(CLASS_NAMES)
        assert sum(counts.values()) == expected
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_summary_counts_what_is_there(summary: DatasetSummary) -> None:
    files = files_of(summary.root)
    assert (summary.num_train, summary.num_val) == (NUM_TRAIN, NUM_VAL)
    assert summary.num_bytes == sum(map(len, files.values()))
    assert set(summary.odd_files) | set(summary.broken_files) <= set(files)


def test_each_odd_kind_occurs_in_both_splits(summary: DatasetSummary) -> None:
    for split in ("train", "val"):
        kinds = Counter(kind for path, kind in summary.odd_files.items() if path.startswith(split))
        assert kinds == Counter(kind.name for kind in ODD)


def test_exactly_two_files_are_broken_and_both_are_in_train(summary: DatasetSummary) -> None:
    assert all(path.startswith("train/") for path in summary.broken_files)
    assert sorted(summary.broken_files.values()) == sorted(kind.name for kind in BROKEN) and len(BROKEN) == 2
    unreadable = set()
    for name, data in files_of(summary.root).items():
        try:
            with Image.open(summary.root / name) as picture:
                picture.load()
        except OSError:
            unreadable.add(name)
        else:
            assert decoded(data) is not None, name
    assert unreadable == set(summary.broken_files)


def test_the_default_dataset_has_few_odd_files_and_two_broken() -> None:
    train, val = plan_split("train", 1200, 0), plan_split("val", 300, 0)
    assert Counter(plan.label for plan in train) == Counter(dict.fromkeys(range(10), 120))
    assert Counter(plan.label for plan in val) == Counter(dict.fromkeys(range(10), 30))
    assert sum(plan.kind in BROKEN for plan in train) == 2
    assert sum(plan.kind in ODD for plan in train) == 3 * len(ODD)
    assert sum(plan.kind is not None for plan in val) == len(ODD)


def test_sizes_are_many_and_mostly_ordinary() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([draw_size(rng) for _ in range(2000)])
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    assert shorter.min() >= 80 and shorter.max() <= 640
    assert np.mean((shorter >= 200) & (shorter <= 500)) > 0.8
    assert (longer / shorter).max() <= 2.01
    assert 0.1 < np.mean(sizes[:, 1] > sizes[:, 0]) < 0.4
    assert len(np.unique(sizes, axis=0)) > 1000


def test_progress_ends_with_everything(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(
        tmp_path, num_train=12, num_val=12, workers=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_leftovers_of_an_interrupted_run_are_replaced(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, num_train=12, num_val=12, workers=1, progress=stop)
    assert not (tmp_path / "train").exists() and not (tmp_path / "val").exists()
    write_dataset(tmp_path, num_train=12, num_val=12, workers=1)
    assert len(files_of(tmp_path)) == 24


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_existing_split_is_refused_and_kept(tmp_path: Path, split: str) -> None:
    (tmp_path / split).mkdir()
    (tmp_path / split / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=f"{split} already exists"):
        write_dataset(tmp_path, workers=1)
    assert files_of(tmp_path) == {f"{split}/mine.txt": b"keep"}


def workers_of(process: subprocess.Popen[str]) -> list[Path]:
    """Entries of /proc of those that draw, as long as they run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            *_, state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            drawing = "spawn_main" in (entry / "cmdline").read_text()
        except OSError:  # it has just ended
            continue
        if drawing and int(session) == process.pid and state != "Z":
            found.append(entry)
    return found


def is_deaf(entry: Path, number: signal.Signals) -> bool:
    """Whether a process of /proc blocks a signal: what it would say to it depends on the moment."""
    (blocked,) = [line.split()[1] for line in (entry / "status").read_text().splitlines() if line.startswith("SigBlk")]
    return bool(int(blocked, 16) >> (number - 1) & 1)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_run_and_are_quiet_about_it(tmp_path: Path, number: signal.Signals) -> None:
    # Ctrl-C in the first seconds met them importing, each answered with a traceback; a killed run left them waiting.
    command = f"from lmdali.tools.pictures import *; write_dataset(Path({str(tmp_path)!r}), num_train=9000, workers=2)"
    process = subprocess.Popen(
        [sys.executable, "-c", command], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: len(workers_of(process)) == 2)
        assert all(is_deaf(worker, signal.SIGINT) for worker in workers_of(process))
        if number == signal.SIGKILL:
            wait_until(lambda: any(tmp_path.rglob("*.*")))
            process.kill()
        else:
            os.killpg(process.pid, number)  # as a terminal does it
        _, errors = process.communicate(timeout=100)
        if number == signal.SIGINT:  # one that was killed may have left a worker in the middle of a message
            assert errors.count("Traceback") == 1 and "spawn" not in errors, errors
        wait_until(lambda: not workers_of(process))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_root_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StorageError, match="another folder"):
        write_dataset(tmp_path / "root", workers=1)


@pytest.mark.parametrize(
    ("option", "value"), [("num_train", 11), ("num_val", 0), ("seed", -1), ("seed", 2**64), ("workers", 0)]
)
def test_numbers_that_cannot_work_are_refused(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=str(value)):
        write_dataset(tmp_path / "root", **{option: value})
    assert not (tmp_path / "root").exists()
