"""What this machine could do at most: no loader, no order, no storage, as little Python per sample as can be.

* "decode": libjpeg-turbo (simplejpeg, accurate IDCT) on files in memory, into reused buffers.
* "pass": the same, followed at once by one compiled pass into a reused batch: the ceiling of the form.
* "compiled": stored pixels in memory, random records and offsets, the compiled pass: the ceiling of raw records.
* "memcpy": whole stored images copied into a reused batch.
* "read": records found in LMDB by lmdali's reader and copied, not decoded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lmdali.tools.ceilings import read_probe, sample_records
from peers import compiled_pass
from peers.decode_buffer import decode_buffer
from peers.task import Task

MAX_PIXEL_BYTES = 1_000_000_000
"""Pixels kept in memory for the raw ceilings: far more than any cache holds."""

_PARTS_PER_THREAD = 2

Work = Callable[[np.random.Generator, NDArray[Any]], None]
"""Fills rows of a batch."""


def batches(task: Task, variant: str) -> Iterator[Any]:
    """Batches without end, filled by threads that only meet where a batch ends; valid until the next is asked for."""
    if variant == "read":
        return (range(images) for images in read_probe(Path(task.dataset), num_threads=task.num_threads).run())
    return _filled(task, variant)


def _filled(task: Task, variant: str) -> Iterator[NDArray[Any]]:
    work = {"decode": _decode, "pass": _pass, "compiled": _compiled, "memcpy": _memcpy}[variant](task)
    shape = task.batch_shape
    if variant in ("decode", "memcpy"):
        shape = (task.batch_size, task.image_size, task.image_size, 3)
    # Three batches: one with the consumer, two being filled, so that no thread waits for the end of a batch.
    ring = cycle([np.empty(shape, np.uint8 if variant in ("decode", "memcpy") else task.form) for _ in range(3)])
    local = threading.local()

    def run(rows: NDArray[Any]) -> None:
        if not hasattr(local, "random"):
            local.random = np.random.default_rng()
        work(local.random, rows)

    in_flight: deque[tuple[NDArray[Any], list[Future[None]]]] = deque()
    with ThreadPoolExecutor(task.num_threads) as pool:
        while True:
            while len(in_flight) < 2:
                batch = next(ring)
                parts = np.array_split(batch, _PARTS_PER_THREAD * task.num_threads)
                in_flight.append((batch, [pool.submit(run, rows) for rows in parts]))
            batch, futures = in_flight.popleft()
            for future in futures:
                future.result()
            yield batch


def _views(task: Task, random: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    room = task.image_size - task.crop_size
    return random.integers(0, room, (count, 2), endpoint=True), random.random(count) < 0.5


def _decode(task: Task) -> Work:
    sample, local = sample_records(Path(task.dataset)), threading.local()

    def work(random: np.random.Generator, rows: NDArray[Any]) -> None:
        # One buffer: the decoded pixels are not kept, as in a loader that crops them right away.
        if not hasattr(local, "pixels"):
            local.pixels = decode_buffer(task.image_size)
        for number in random.integers(0, len(sample), len(rows)).tolist():
            simplejpeg.decode_jpeg(sample[number], "RGB", fastdct=False, fastupsample=False, buffer=local.pixels)

    return work


def _pass(task: Task) -> Work:
    sample, local = sample_records(Path(task.dataset)), threading.local()
    one_view, side = compiled_pass.one_view, task.image_size
    mean, shift, scale = compiled_pass.arithmetic(task)

    def work(random: np.random.Generator, rows: NDArray[Any]) -> None:
        if not hasattr(local, "pixels"):
            local.pixels = decode_buffer(side)
        crops, flips = _views(task, random, len(rows))
        numbers = random.integers(0, len(sample), len(rows))
        # Python's own numbers: numba takes several times as long to recognise NumPy's scalars.
        for row, (number, (y, x), flip) in enumerate(
            zip(numbers.tolist(), crops.tolist(), flips.tolist(), strict=True)
        ):
            simplejpeg.decode_jpeg(sample[number], "RGB", fastdct=False, fastupsample=False, buffer=local.pixels)
            one_view(local.pixels, y, x, flip, mean, shift, scale, rows[row])

    return work


def _stored_pixels(task: Task) -> NDArray[np.uint8]:
    sample = sample_records(Path(task.dataset), max_bytes=MAX_PIXEL_BYTES)
    side, count = task.image_size, 3 * task.image_size**2
    images = np.empty((len(sample), side, side, 3), np.uint8)
    for image, data in zip(images, sample, strict=True):
        image.reshape(-1)[:] = np.frombuffer(data, np.uint8, count, len(data) - count)
    return images


def _compiled(task: Task) -> Work:
    images, arithmetic = _stored_pixels(task), compiled_pass.arithmetic(task)

    def work(random: np.random.Generator, rows: NDArray[Any]) -> None:
        numbers = random.integers(0, len(images), len(rows))
        crops, flips = _views(task, random, len(rows))
        if task.form == "uint8":
            compiled_pass.many_pixels(images, numbers, crops, flips, rows)
        else:
            compiled_pass.many_floats(images, numbers, crops, flips, *arithmetic, rows)

    return work


def _memcpy(task: Task) -> Work:
    images = _stored_pixels(task)

    def work(random: np.random.Generator, rows: NDArray[Any]) -> None:
        for row, number in enumerate(random.integers(0, len(images), len(rows)).tolist()):
            np.copyto(rows[row], images[number])

    return work
