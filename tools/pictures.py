"""The built-in dataset: about 1,500 drawn pictures of ten classes, written as a class-per-folder tree.

Each picture is a pure function of (seed, split, class, number), so any number of workers writes the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from lmdali.pipeline.errors import ConfigError, InputError, MachineError, StorageError
from lmdali.pipeline.path_kind import exists
from lmdali.tools.filekinds import BROKEN, EVERYDAY, ODD, FileKind
from lmdali.tools.motifs import MOTIFS
from lmdali.tools.process_start import children_deaf_to_signals
from lmdali.tools.scenes import render

CLASS_NAMES: tuple[str, ...] = tuple(motif.name for motif in MOTIFS)
SPLITS = ("train", "val")
SMALLEST_SPLIT = len(ODD) + len(BROKEN)
PICTURES_PER_ODD_KIND = 400
PICTURES_PER_TASK = 20


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What `write_dataset` wrote.

    `num_train` and `num_val` count files, the broken ones included. `odd_files` and `broken_files` map a path relative
    to `root`, with forward slashes, to what the file is.
    """

    root: Path
    class_names: tuple[str, ...]
    num_train: int
    num_val: int
    num_bytes: int
    odd_files: dict[str, str]
    broken_files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PicturePlan:
    """One file to be: the picture's place in the dataset, and the kind where it is not an everyday one."""

    split: str
    label: int
    number: int
    kind: FileKind | None = None


def write_dataset(
    root: Path,
    *,
    num_train: int = 1200,
    num_val: int = 300,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetSummary:
    """Write `root/train/<class>/...` and `root/val/<class>/...`.

    Both folders appear only when all their files are written; what an interrupted run left is removed by the next one.

    Args:
        root: Folder to write into; made if missing. Must not have a `train` or `val` yet.
        num_train: Files in `train`, at least 12. Exactly two of them are broken.
        num_val: Files in `val`, at least 12. None of them is broken.
        seed: 0 to 2**64 - 1; the same seed gives the same bytes.
        workers: Worker processes; by default one per CPU this process may use. 1 works in this process.
        progress: Called in this process with (files written, files in all).

    Raises:
        ConfigError: A count, the seed or the number of workers cannot work.
        InputError: `root` already holds a `train` or `val`.
        StorageError: A file could not be written.
        MachineError: A worker process died.
    """
    workers = _usable_cpus() if workers is None else workers
    _check(num_train, num_val, seed, workers)
    unfinished = root / ".unfinished"
    plans = [*plan_split("train", num_train, seed), *plan_split("val", num_val, seed)]
    try:
        for split in SPLITS:
            if exists(root / split):
                raise InputError(f"{root / split} already exists: remove it or give another folder")
        shutil.rmtree(unfinished, ignore_errors=True)
        for split in SPLITS:
            for name in CLASS_NAMES:
                (unfinished / split / name).mkdir(parents=True)
        written: list[tuple[PicturePlan, str, int]] = []
        for part in _write_all(unfinished, plans, seed, workers):
            written += part
            if progress is not None:
                progress(len(written), len(plans))
        for split in SPLITS:
            (unfinished / split).rename(root / split)
        unfinished.rmdir()
    except OSError as error:
        raise StorageError(f"writing pictures to {root}: {error}; free space or give another folder") from error
    return DatasetSummary(
        root=root,
        class_names=CLASS_NAMES,
        num_train=num_train,
        num_val=num_val,
        num_bytes=sum(num_bytes for _, _, num_bytes in written),
        odd_files=_named(written, ODD),
        broken_files=_named(written, BROKEN),
    )


def plan_split(split: str, num_files: int, seed: int) -> list[PicturePlan]:
    """All files of a split, classes in turn, with the odd and (in train) the broken ones at places drawn by seed."""
    copies = max(1, num_files // PICTURES_PER_ODD_KIND)
    special = list(ODD) * copies + (list(BROKEN) if split == "train" else [])
    places = _generator(seed, split, len(MOTIFS), 0).permutation(num_files)
    kinds = {int(place): kind for place, kind in zip(places, special, strict=False)}
    return [
        PicturePlan(split=split, label=i % len(MOTIFS), number=i // len(MOTIFS), kind=kinds.get(i))
        for i in range(num_files)
    ]


def draw_file(plan: PicturePlan, seed: int) -> tuple[str, bytes]:
    """File name (without folders) and content of one planned picture."""
    rng = _generator(seed, plan.split, plan.label, plan.number)
    # Size and kind are drawn before anything of the motif, so they cannot tell the class.
    width, height = draw_size(rng)
    everyday = EVERYDAY[int(rng.choice(len(EVERYDAY), p=[share for _, share in EVERYDAY]))][0]
    kind = plan.kind or everyday
    pixels = render(MOTIFS[plan.label], width, height, rng)
    return f"{CLASS_NAMES[plan.label]}_{plan.number:04d}{kind.suffix}", kind.encode(pixels, rng)


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels: shorter side 80 to 640, mostly 200 to 500; square to panoramic, also upright."""
    low, high = ((80, 200), (200, 500), (500, 640))[int(rng.choice(3, p=[0.08, 0.87, 0.05]))]
    shorter = int(rng.integers(low, high + 1))
    aspect = float(rng.choice([1.0, 4 / 3, 3 / 2, 16 / 9, rng.uniform(1, 2)], p=[0.15, 0.4, 0.25, 0.08, 0.12]))
    longer = round(shorter * aspect)
    return (shorter, longer) if rng.random() < 0.3 else (longer, shorter)


def _check(num_train: int, num_val: int, seed: int, workers: int) -> None:
    if min(num_train, num_val) < SMALLEST_SPLIT:
        raise ConfigError(f"{num_train} train and {num_val} val pictures: each split needs at least {SMALLEST_SPLIT}")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed}: give a number from 0 to 2**64 - 1")
    if workers < 1:
        raise ConfigError(f"{workers} workers: give at least 1")


def _generator(seed: int, split: str, label: int, number: int) -> np.random.Generator:
    """The counter-based generator of one picture; the label past the last one is that of the split's plan."""
    place = SPLITS.index(split) << 56 | label << 40 | number
    return np.random.Generator(np.random.Philox(key=np.array([seed, place], np.uint64)))


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_all(
    folder: Path, plans: list[PicturePlan], seed: int, workers: int
) -> Iterator[list[tuple[PicturePlan, str, int]]]:
    """Write all planned files, some at a time, here or in worker processes, in any order."""
    parts = [plans[i : i + PICTURES_PER_TASK] for i in range(0, len(plans), PICTURES_PER_TASK)]
    write = partial(_write_part, folder, seed)
    if workers == 1:
        yield from map(write, parts)
        return
    # Not "fork": the caller may hold threads (torch, DALI) that would not survive it.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(parts)), mp_context=context, initializer=_end_with_parent)
    try:
        with children_deaf_to_signals():
            tasks = [pool.submit(write, part) for part in parts]
        for done in as_completed(tasks):
            yield done.result()
    except BrokenProcessPool as error:
        raise MachineError("a worker that draws pictures died (out of memory?); try fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: one whose parent is killed would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_part(folder: Path, seed: int, plans: list[PicturePlan]) -> list[tuple[PicturePlan, str, int]]:
    """Draw and write some files; per file its plan, its path below `folder`, and its size in bytes."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the workers already use every core
    try:
        written = []
        for plan in plans:
            name, data = draw_file(plan, seed)
            path = f"{plan.split}/{CLASS_NAMES[plan.label]}/{name}"
            (folder / path).write_bytes(data)
            written.append((plan, path, len(data)))
        return written
    finally:
        cv2.setNumThreads(threads)


def _named(written: list[tuple[PicturePlan, str, int]], kinds: tuple[FileKind, ...]) -> dict[str, str]:
    """The files of special kinds among the written, by path."""
    names = {kind.name for kind in kinds}
    found = {path: plan.kind.name for plan, path, _ in written if plan.kind is not None and plan.kind.name in names}
    return dict(sorted(found.items()))
