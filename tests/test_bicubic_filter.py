"""The fast filter: what Pillow says it should be, the same on every build of torch, and compiled."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from guarded_memory import guarded
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.vectors import HAS_PAIR_SUMS
from lmdali.tools import bicubic_filter
from lmdali.tools.bicubic_filter import BicubicFilter
from lmdali.tools.resize import ResizeRecipe, resize_and_crop

RECIPE = ResizeRecipe.named("bicubic", 64)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=60)
def test_pixels_are_pillows_bicubic_of_the_central_square(height: int, width: int, seed: int) -> None:
    pixels = noise(height, width, seed)
    before = pixels.copy()
    result = resize_and_crop(pixels, RECIPE)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    expected = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))
    # Both round weights to fixed point, torch to fewer bits.
    assert np.abs(result.astype(int) - expected).max() <= 2
    assert result.shape == (64, 64, 3) and result.dtype == np.uint8
    assert result.flags.c_contiguous and not np.shares_memory(result, pixels)
    assert (pixels == before).all()


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (93, 64)])
def test_a_picture_of_the_right_size_is_only_cropped(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    top, left = (shape[0] - 64) // 2, (shape[1] - 64) // 2
    assert (resize_and_crop(pixels, RECIPE) == pixels[top : top + 64, left : left + 64]).all()


def test_a_picture_of_65500_by_1_pixels_is_one_flat_square() -> None:
    pixels = noise(65_500, 1)
    assert (resize_and_crop(pixels, RECIPE) == pixels[32_749]).all()


SCRIPT = """
import hashlib
import numpy as np
from lmdali.tools.bicubic_filter import BicubicFilter
digest, resize = hashlib.sha256(), BicubicFilter().central_square
for side in (20, 63, 64, 65, 100, 257, 400, 1000):
    digest.update(resize(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8), 64))
print(digest.hexdigest())
"""


def test_vectorised_and_plain_code_give_the_same_bytes() -> None:
    digests = set()
    for capability in ("default", "avx2"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=250, env=environment, check=True
        )
        digests.add(done.stdout.strip())
    here = hashlib.sha256()
    for side in (20, 63, 64, 65, 100, 257, 400, 1000):
        here.update(BicubicFilter().central_square(noise(side, side, side), 64))
    assert digests == {here.hexdigest()}


def test_without_torch_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bicubic_filter._torch.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"filter 'bicubic' needs the package 'torch'.*lmdali\[train\]"):
        resize_and_crop(noise(70, 70), RECIPE)
    bicubic_filter._torch.cache_clear()


def test_the_version_of_torch_is_known_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys\n"
        "import lmdali.tools.convert\n"
        "from lmdali.tools.conversion import ConvertConfig\n"
        "print(ConvertConfig(filter='bicubic').recipe()['resizer'])\n"
        "assert 'torch' not in sys.modules, 'a second and a half for a number'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250, check=True)
    assert done.stdout == f"torch {torch.__version__.partition('+')[0]}\n"

    monkeypatch.setattr(bicubic_filter, "installed_version", lambda package: None)
    with pytest.raises(MissingExtraError, match=r"lmdali\[train\]"):
        bicubic_filter.torch_version()


# The compiled loop.


@pytest.fixture
def tried_anew() -> Iterator[None]:
    bicubic_filter._kernel_like_torch.cache_clear()
    yield
    bicubic_filter._kernel_like_torch.cache_clear()


@pytest.fixture(scope="module")
def compiled() -> BicubicFilter:
    if not HAS_PAIR_SUMS:
        pytest.skip("the loop needs a processor with AVX2")
    resize = BicubicFilter()
    resize.compile()
    assert resize.is_compiled
    return resize


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300))
@example(256, 256, 256)
@example(375, 500, 256)
@example(513, 700, 256)  # three groups of taps
@example(1, 1, 300)
@example(700, 699, 1)
@example(2, 700, 3)
def test_the_compiled_loop_gives_the_bytes_of_torch(
    compiled: BicubicFilter, height: int, width: int, size: int
) -> None:
    pixels = noise(height, width, height * width)
    square = compiled.central_square(pixels, size)
    assert square.flags.c_contiguous and not np.shares_memory(square, pixels)
    assert np.array_equal(square, BicubicFilter().central_square(pixels, size))


@pytest.mark.parametrize("shade", [0, 1, 127, 254, 255])
def test_one_shade_stays_that_shade(compiled: BicubicFilter, shade: int) -> None:
    assert (compiled.central_square(np.full((613, 411, 3), shade, np.uint8), 256) == shade).all()


def test_a_window_of_a_larger_picture_is_resized_too(compiled: BicubicFilter) -> None:
    pixels = noise(500, 700)[20:420, 31:640]
    assert np.array_equal(compiled.central_square(pixels, 256), BicubicFilter().central_square(pixels, 256))


@pytest.mark.parametrize("side", [300, 97])
def test_nothing_is_read_beyond_the_picture(compiled: BicubicFilter, side: int) -> None:
    pixels = guarded(noise(side, side))
    assert np.array_equal(compiled.central_square(pixels, 256), BicubicFilter().central_square(pixels, 256))


@pytest.mark.usefixtures("tried_anew")
def test_a_loop_whose_bytes_are_not_those_of_torch_is_left(
    compiled: BicubicFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmdali.tools import bicubic_kernel

    resize_bicubic = bicubic_kernel.resize_bicubic

    def rounds_otherwise(*arguments: Any) -> None:
        resize_bicubic(*arguments)
        arguments[-1][100, 100] ^= 1

    monkeypatch.setattr(bicubic_kernel, "resize_bicubic", rounds_otherwise)
    resize = BicubicFilter()
    resize.compile()
    assert not resize.is_compiled


@pytest.mark.usefixtures("tried_anew")
@pytest.mark.parametrize("missing", ["numba", "AVX2"])
def test_without_what_it_needs_torch_does_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "AVX2":
        monkeypatch.setattr(import_module("lmdali.pipeline.vectors"), "HAS_PAIR_SUMS", False)
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
        for name in ("tools.bicubic_kernel", "tools.filter_vectors", "pipeline.crop_kernel", "pipeline.word_access"):
            monkeypatch.delitem(sys.modules, f"lmdali.{name}", raising=False)
    resize = BicubicFilter()
    resize.compile()
    assert not resize.is_compiled
    pixels = noise(300, 500)
    assert np.array_equal(resize.central_square(pixels, 256), BicubicFilter().central_square(pixels, 256))
