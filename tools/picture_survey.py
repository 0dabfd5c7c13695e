"""What a conversion learns of every stored picture: the moments of all, and the hash and spread of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.moments import Moments, largest_deviation
from lmdali.pipeline.perceptual_hash import THUMBNAIL_SIDE, picture_hash

_Kernel = Callable[[Any, Any, Any, Any], int]
_TRIED_PICTURES = 3
_MAX_IMAGES = (2**16 - 1) // 255  # that uint16 can add up
_MAX_SIZE = 4096  # what the compiled pass adds up in 16 and 32 bits along a side fits


class PictureSurvey(Protocol):
    """Adds up pictures of one size."""

    def add(self, pixels: Pixels) -> tuple[int, float]:
        """Look at one `(S, S, 3)` uint8 RGB picture: its perceptual hash, and its spread in gray levels."""
        ...

    def finish(self) -> None:
        """Complete the moments, after the last picture."""
        ...


class LibrarySurvey:
    """By OpenCV's passes.

    Args:
        moments: that pictures are added to.
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments

    def add(self, pixels: Pixels) -> tuple[int, float]:
        """See `PictureSurvey`."""
        return picture_hash(pixels), self._moments.add_image(pixels)

    def finish(self) -> None:
        """Nothing is left to do."""


class CompiledSurvey:
    """By one compiled pass: the same numbers.

    Args:
        moments: with sums by position; complete after `finish`.
        size: side of the pictures, pixels.
        kernel: `survey_picture`.
    """

    def __init__(self, moments: Moments, size: int, kernel: _Kernel) -> None:
        self._moments, self._kernel = moments, kernel
        self._num_images, self._num_pixels = 0, size * size
        self._sums = np.zeros((size, size, 3), np.uint16)
        self._totals, self._picture = np.zeros(9, np.int64), np.zeros(9, np.int64)

    def add(self, pixels: Pixels) -> tuple[int, float]:
        """See `PictureSurvey`."""
        phash = self._kernel(pixels, self._sums, self._totals, self._picture)
        self._num_images += 1
        if self._num_images == _MAX_IMAGES:
            self.finish()
        red, green, blue, rr, _, _, gg, _, bb = self._picture.tolist()
        return phash, largest_deviation(self._num_pixels, (red, green, blue), (rr, gg, bb))

    def finish(self) -> None:
        """Move what has been added up to the moments."""
        count, totals = self._num_images, self._totals.tolist()
        self._moments.merge(Moments.from_totals(count, count * self._num_pixels, totals, self._sums.astype(np.int64)))
        self._num_images = 0
        self._sums[:], self._totals[:] = 0, 0


def make_survey(moments: Moments, size: int, *, compiled: bool) -> PictureSurvey:
    """A survey of pictures of one size.

    Args:
        moments: that pictures are added to, with sums by position.
        size: side of the pictures, pixels.
        compiled: by the compiled pass, if numba is there, the size suits it, and its numbers are those of OpenCV.
    """
    kernel = _kernel_like_opencv(size) if compiled else None
    return LibrarySurvey(moments) if kernel is None else CompiledSurvey(moments, size, kernel)


@cache
def _kernel_like_opencv(size: int) -> _Kernel | None:
    """The compiled pass, or None where numba is missing, the size does not suit it, or a number is not OpenCV's."""
    # Halving a side, OpenCV rounds otherwise; and where nothing is shrunk there is nothing to add up.
    if size % THUMBNAIL_SIDE or not 2 * THUMBNAIL_SIDE < size <= _MAX_SIZE:
        return None
    try:
        from lmdali.tools.survey_kernel import survey_picture
    except (MissingExtraError, MemoryError):
        return None
    random = np.random.default_rng(0)
    theirs, ours = Moments.zero(size, size), Moments.zero(size, size)
    library, compiled = LibrarySurvey(theirs), CompiledSurvey(ours, size, survey_picture)
    for _ in range(_TRIED_PICTURES):
        pixels = random.integers(0, 256, (size, size, 3), np.uint8)
        if library.add(pixels) != compiled.add(pixels):
            return None
    compiled.finish()
    is_equal = ours.to_json() == theirs.to_json() and np.array_equal(ours.image_sums, theirs.image_sums)  # type: ignore[arg-type]
    return survey_picture if is_equal else None
