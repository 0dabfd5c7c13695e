"""Library calls alone, in as many processes as a conversion has; filters are OpenCV's and torch's: none compiles."""

from __future__ import annotations

import multiprocessing
from time import thread_time
from typing import Any

import cv2
import simplejpeg
import torch

from converters import Job
from lmdali.pipeline.decode import Pixels
from lmdali.tools.resize import ResizeRecipe, resize_and_crop

PARTS = ("decode", "resize", "encode", "decode back")


def run_parts(job: Job, filter_name: str) -> None:
    """All pictures through the parts, in processes."""
    paths = [path for path, _ in job.files()]
    shares = [(paths[number :: job.workers], job, filter_name) for number in range(job.workers)]
    with multiprocessing.get_context("spawn").Pool(job.workers) as pool:
        pool.map(_run_share, shares)


def part_times(files: list[bytes], job: Job, filter_name: str) -> dict[str, float]:
    """CPU seconds of each part per picture, in this thread."""
    _one_thread()
    recipe = ResizeRecipe.named(filter_name, job.size)  # type: ignore[arg-type]
    spent = dict.fromkeys(PARTS, 0.0)
    for data in files:
        begin = thread_time()
        pixels = _decode(data)
        decoded = thread_time()
        square = resize_and_crop(pixels, recipe)
        resized = thread_time()
        encoded = _encode(square, job)
        written = thread_time()
        _decode(encoded)
        end = thread_time()
        for part, seconds in zip(
            PARTS, (decoded - begin, resized - decoded, written - resized, end - written), strict=True
        ):
            spent[part] += seconds / len(files)
    return spent


def _run_share(share: tuple[list[Any], Job, str]) -> None:
    paths, job, filter_name = share
    _one_thread()
    recipe = ResizeRecipe.named(filter_name, job.size)  # type: ignore[arg-type]
    # A few files in memory, again and again: reading is not a part.
    held = [path.read_bytes() for path in paths[:400]]
    for number in range(len(paths)):
        _decode(_encode(resize_and_crop(_decode(held[number % len(held)]), recipe), job))


def _one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _decode(data: bytes) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    return pixels


def _encode(square: Pixels, job: Job) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(square, job.quality, "RGB", "420")
    return encoded
