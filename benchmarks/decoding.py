"""What the compiled JPEG decoder takes beside libjpeg-turbo: sources, records, and its parts, on one thread.

    python benchmarks/decoding.py FOLDER [--quality 90] [--rounds 9]

FOLDER has source files; those that the compiled decoder is made for count, and the rest is told. Their 256-pixel
records are made first. All steps take turns, in CPU time of the thread; pixels are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from lmdali.pipeline import jpeg_kernel
from lmdali.pipeline.decode import decode_source
from lmdali.pipeline.huffman_tables import HuffmanTables
from lmdali.pipeline.idct_kernel import transform_group_in_loops, transform_group_in_vectors
from lmdali.pipeline.idct_vectors import GROUP, LANES
from lmdali.pipeline.image_header import read_header
from lmdali.pipeline.jpeg_header import JpegHeader, read_jpeg_header
from lmdali.pipeline.jpeg_layout import JpegLayout, read_layout
from lmdali.pipeline.paint_kernel import paint_run, paint_whole
from lmdali.pipeline.record_codec import decode_stored, encode_jpeg
from lmdali.pipeline.vectors import HAS_PAIR_SUMS
from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import print_table
from lmdali.tools.resize import ResizeRecipe, resize_and_crop
from lmdali.tools.source_jpeg import source_jpeg_decoder

_SIZE, _CROP = 256, 224
_RUN = 8  # records decoded by one call
_GROUPS = 10_000
_Steps = dict[str, tuple[Callable[[], object], int]]
"""What one pass of a step is, and over how many things."""


def source_steps(files: list[bytes]) -> _Steps:
    """Whole sources: both decoders, and what comes before the first coefficient."""
    decode = source_jpeg_decoder()
    if decode is None:
        raise SystemExit("the compiled decoder cannot be used here: pip install 'lmdali[train]'")
    buffer = np.empty(24_000_000, np.uint8)
    taken = [(data, read_header(data)) for data in files if data[:2] == b"\xff\xd8"]
    taken = [(data, header) for data, header in taken if decode(data, header, buffer) is not None]
    print(f"{len(taken)} of {len(files)} sources are decoded by it")
    details = [read_jpeg_header(data, len(data)) for data, _ in taken]
    tables = HuffmanTables()
    for data, header in taken:
        made = decode(data, header, buffer)
        assert made is not None and np.array_equal(made, _by_libjpeg(data))

    def over(things: Iterable[tuple[object, ...]], step: Callable[..., object]) -> tuple[Callable[[], object], int]:
        listed = list(things)
        return lambda: [step(*thing) for thing in listed].clear(), len(listed)

    return {
        "source, libjpeg-turbo": over([(data, buffer) for data, _ in taken], _by_libjpeg),
        "source, compiled": over([(data, header, buffer) for data, header in taken], decode),
        "its header": over([(data, len(data)) for data, _ in taken], read_jpeg_header),
        "its Huffman tables": over([(one,) for one in details if isinstance(one, JpegHeader)], tables.fill),
    }


def record_steps(files: list[bytes], quality: int) -> _Steps:
    """Records: both decoders, whole, and the two halves of what a crop takes."""
    recipe = ResizeRecipe(size=_SIZE)
    records = [encode_jpeg(resize_and_crop(decode_source(data).pixels, recipe), quality) for data in files]
    layout = read_layout(records[0])
    assert isinstance(layout, JpegLayout), layout
    data, arrays = np.frombuffer(b"".join(records), np.uint8), jpeg_kernel.layout_arrays(layout)
    stops = np.cumsum([len(record) for record in records])
    starts = stops - [len(record) for record in records]
    planes, status = jpeg_kernel.new_planes(_RUN, _SIZE), np.empty(_RUN, np.int64)
    whole, crops = np.empty((_RUN, _SIZE, _SIZE, 3), np.uint8), np.empty((_RUN, _CROP, _CROP, 3), np.uint8)
    corners = np.random.default_rng(0).integers(0, _SIZE - _CROP + 1, (_RUN, 2))
    flips, everything = np.zeros(_RUN, np.bool_), np.tile([0, _SIZE, 0, _SIZE], (_RUN, 1))
    windows = jpeg_kernel.view_windows(corners, 1, _CROP)
    runs = [slice(start, start + _RUN) for start in range(0, len(records) - _RUN + 1, _RUN)]
    count = _RUN * len(runs)

    def decode(run: slice, windows: NDArray[np.int64]) -> None:
        jpeg_kernel.decode_run(data, starts[run], stops[run], *arrays, windows, planes, status)
        assert (status == jpeg_kernel.OK).all()

    def decode_whole(run: slice) -> None:
        decode(run, everything)
        paint_whole(planes, whole)

    for run in runs:
        decode_whole(run)
        assert all(np.array_equal(*both) for both in zip(whole, map(decode_stored, records[run]), strict=True))
    return {
        "record, libjpeg-turbo": (
            lambda: [decode_stored(record, _SIZE, whole[0]) for record in records[:count]],
            count,
        ),
        "record, compiled": (lambda: [decode_whole(run) for run in runs], count),
        "planes of a 224 crop": (lambda: [decode(run, windows) for run in runs], count),
        "its colours": (lambda: [paint_run(planes, _SIZE, 1, corners, flips, crops) for _ in runs], count),
    }


def transform_steps() -> _Steps:
    """The inverse DCT of sixteen dense blocks."""
    random = np.random.default_rng(0)
    coefficients = random.integers(-30, 30, GROUP).astype(np.int16)
    quant = np.full(64, 3, np.int16)
    memory = np.empty(GROUP, np.int16), np.empty(2 * LANES, np.uint32), np.empty(8 * LANES, np.uint64)

    def repeated(transform: Callable[..., object]) -> Callable[[], object]:
        @numba.njit
        def passes(coefficients: Any, quant: Any, work: Any, halves: Any, words: Any) -> None:
            for _ in range(_GROUPS):
                transform(coefficients, quant, work, halves, words, 0, LANES)

        return lambda: passes(coefficients, quant, *memory)

    ways = {"in loops": transform_group_in_loops}
    if HAS_PAIR_SUMS:
        ways["in vectors"] = transform_group_in_vectors
    return {f"inverse DCT of 16 blocks, {name}": (repeated(way), _GROUPS) for name, way in ways.items()}


def _by_libjpeg(data: bytes, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=buffer)
    return pixels


def main() -> None:
    """Parse, measure all steps in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quality", type=int, default=90, help="of the records")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    files = [path.read_bytes() for path in sorted(arguments.folder.rglob("*")) if path.is_file()]
    steps = source_steps(files) | record_steps(files, arguments.quality) | transform_steps()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(arguments.rounds + 1):
        for name, (step, count) in steps.items():
            start = time.thread_time()
            step()
            if round_number:  # the first one compiles
                taken[name].append(1e6 * (time.thread_time() - start) / count)
    print_table(
        f"{machine_facts(torch.device('cpu'))['cpu']}, one thread, {arguments.rounds} rounds",
        ("step", "CPU us", "range"),
        [(name, f"{statistics.median(us):,.2f}", f"{min(us):,.2f}-{max(us):,.2f}") for name, us in taken.items()],
    )


if __name__ == "__main__":
    main()
