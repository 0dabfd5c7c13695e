"""Where the compiled bicubic loop reads and writes: its Python, with vectors that check every range they touch."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmdali.pipeline.crop_kernel import copy_items
from lmdali.tools import bicubic_kernel
from lmdali.tools.bicubic_filter import BicubicFilter

Array = npt.NDArray[Any]


def part(memory: Array, begin: int, count: int) -> Array:
    assert 0 <= begin <= memory.size - count, f"{begin} to {begin + count} of {memory.size}"
    return memory[begin : begin + count]


def rounded(sums: Array, shift: int) -> Array:
    return np.clip((sums + (1 << shift - 1)) >> shift, 0, 255)


def blend_columns(
    out: Array, to: int, pixels: Array, begin: int, offsets: Array, first: int, table: Array, groups: int, shift: int
) -> None:
    made: list[int] = []
    for x, offset in enumerate(part(offsets, first, 4), first):
        total = np.zeros(3, np.int64)
        for group in range(groups):
            taps = part(pixels, begin + offset + 12 * group, 16)[:12].astype(int).reshape(2, 2, 3)
            weights = part(table, 16 * groups * x + 16 * group, 16).astype(int).reshape(2, 4, 2)[:, :3]
            total += np.einsum("gct,gtc->c", weights, taps)
        made += rounded(total, int(shift)).tolist()
    part(out, to, 16)[:] = [*made, 0xAA, 0xAA, 0xAA, 0xAA]


def blend_rows(
    out: Array, to: int, rows: Array, begin: int, pitch: int, weights: Array, first: int, pairs: int, shift: int
) -> None:
    total = np.zeros(16, np.int64)
    for tap, weight in enumerate(part(weights, first, 2 * pairs)):
        total += int(weight) * part(rows, begin + tap * pitch, 16).astype(int)
    part(out, to, 16)[:] = rounded(total, int(shift))


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The module again, not compiled, with the vectors above."""
    source = inspect.getsource(bicubic_kernel)
    for line in (
        "from lmdali.pipeline.crop_kernel import compiled, copy_items, expanded\n",
        "from lmdali.tools.filter_vectors import blend_columns, blend_rows\n",
    ):
        assert line in source
        source = source.replace(line, "")
    module = ModuleType("plain_bicubic_kernel")
    as_it_is: Any = lambda function: function  # noqa: E731
    vectors = {"blend_columns": blend_columns, "blend_rows": blend_rows}
    copy: Any = copy_items
    vars(module).update(compiled=as_it_is, expanded=as_it_is, copy_items=copy.py_func, **vectors)
    exec(compile(source, "plain_bicubic_kernel", "exec"), vars(module))
    return module


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 24), st.booleans())
@example(40, 40, 1, True)
@example(13, 13, 13, True)
@example(21, 30, 16, True)  # the last row of the result has fewer taps than another
@example(1, 1, 22, True)
def test_no_vector_leaves_its_memory(plain: ModuleType, height: int, width: int, size: int, is_last: bool) -> None:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = min(height, width)
    square = np.zeros((size, size, 3), np.uint8)
    # The corner that ends with the memory, or the one that begins with it.
    top, left = (height - side, width - side) if is_last else (0, 0)
    plain.resize_bicubic(pixels, top, left, side, square)
    window = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    assert np.array_equal(square, BicubicFilter().central_square(window, size))
