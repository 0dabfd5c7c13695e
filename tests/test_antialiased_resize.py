"""The fast filter: what Pillow says it should be, and the same on every build of torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import MissingExtraError
from lmdali.tools import antialiased_resize
from lmdali.tools.antialiased_resize import resize_antialiased
from lmdali.tools.resize import ResizeRecipe, resize_and_crop

BICUBIC = ResizeRecipe.named("bicubic", 64)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=60)
def test_pixels_are_pillows_bicubic_of_the_central_square(height: int, width: int, seed: int) -> None:
    pixels = noise(height, width, seed)
    before = pixels.copy()
    result = resize_and_crop(pixels, BICUBIC)
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
    assert (resize_and_crop(pixels, BICUBIC) == pixels[top : top + 64, left : left + 64]).all()


def test_a_picture_of_65500_by_1_pixels_is_one_flat_square() -> None:
    pixels = noise(65_500, 1)
    assert (resize_and_crop(pixels, BICUBIC) == pixels[32_749]).all()


SCRIPT = """
import hashlib
import numpy as np
from lmdali.tools.antialiased_resize import resize_antialiased
digest = hashlib.sha256()
for side in (20, 63, 64, 65, 100, 257, 400, 1000):
    digest.update(resize_antialiased(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8), 64))
print(digest.hexdigest())
"""


def test_vectorised_and_plain_code_give_the_same_bytes() -> None:
    digests = set()
    for capability in ("default", "avx2"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100, env=environment, check=True
        )
        digests.add(done.stdout.strip())
    here = hashlib.sha256()
    for side in (20, 63, 64, 65, 100, 257, 400, 1000):
        here.update(resize_antialiased(noise(side, side, side), 64))
    assert digests == {here.hexdigest()}


def test_without_torch_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    antialiased_resize._torch.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"filter 'bicubic' needs the package 'torch'.*lmdali\[train\]"):
        resize_and_crop(noise(70, 70), BICUBIC)
    antialiased_resize._torch.cache_clear()


def test_the_version_of_torch_is_known_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys\n"
        "import lmdali.tools.convert\n"
        "from lmdali.tools.conversion import ConvertConfig\n"
        "resizer = ConvertConfig(filter='bicubic').recipe()['resizer']\n"
        "assert 'torch' not in sys.modules, 'a second and a half for a number'\n"
        "import torch\n"
        "assert resizer == 'torch ' + torch.__version__.partition('+')[0], resizer\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=100, check=True)

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(antialiased_resize, "version", absent)
    with pytest.raises(MissingExtraError, match=r"lmdali\[train\]"):
        antialiased_resize.torch_version()
