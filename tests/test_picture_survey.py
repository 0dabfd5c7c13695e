from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lmdali.pipeline.moments import Moments
from lmdali.pipeline.perceptual_hash import picture_hash
from lmdali.tools import picture_survey
from lmdali.tools.picture_survey import CompiledSurvey, LibrarySurvey, make_survey
from lmdali.tools.survey_kernel import survey_picture

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    picture_survey._kernel_like_opencv.cache_clear()
    yield
    picture_survey._kernel_like_opencv.cache_clear()


def pictures(size: int, count: int) -> list[Pixels]:
    """Noise, one colour, and smooth pictures, whose hashes mean something."""
    random = np.random.default_rng(size)
    noise = [random.integers(0, 256, (size, size, 3), np.uint8) for _ in range(count)]
    smooth = [cv2.resize(picture[:9, :9], (size, size), interpolation=cv2.INTER_CUBIC) for picture in noise]
    plain = [np.full((size, size, 3), shade, np.uint8) for shade in (0, 255)]
    return noise + plain + [np.ascontiguousarray(picture, np.uint8) for picture in smooth]


def assert_equal(one: Moments, other: Moments) -> None:
    assert one.to_json() == other.to_json()
    assert np.array_equal(np.asarray(one.image_sums), np.asarray(other.image_sums))


@pytest.mark.parametrize("size", [96, 128, 224, 256, 320, 512])
def test_the_compiled_pass_finds_what_opencv_finds(size: int) -> None:
    ours, theirs = Moments.zero(size, size), Moments.zero(size, size)
    compiled, library = make_survey(ours, size, compiled=True), make_survey(theirs, size, compiled=False)
    assert isinstance(compiled, CompiledSurvey)
    assert isinstance(library, LibrarySurvey)
    for pixels in pictures(size, 5):
        found = compiled.add(pixels)
        assert found == library.add(pixels)
        assert found[0] == picture_hash(pixels)
        assert found[1] == pytest.approx(pixels.reshape(-1, 3).std(axis=0).max(), abs=1e-9)
    compiled.finish()
    library.finish()
    assert_equal(ours, theirs)


def test_sums_do_not_overflow_and_finishing_twice_adds_nothing() -> None:
    # White pictures, twice as many as 16 bits hold and some more.
    ours, theirs = Moments.zero(96, 96), Moments.zero(96, 96)
    compiled, library = make_survey(ours, 96, compiled=True), make_survey(theirs, 96, compiled=False)
    assert isinstance(compiled, CompiledSurvey)
    white = np.full((96, 96, 3), 255, np.uint8)
    for _ in range(600):
        compiled.add(white)
        library.add(white)
    compiled.finish()
    compiled.finish()
    assert ours.num_images == 600
    assert_equal(ours, theirs)


@pytest.mark.parametrize("size", [32, 64, 100, 250, 8192])
def test_a_size_whose_thumbnail_is_no_mean_of_squares_is_left_to_opencv(size: int) -> None:
    assert isinstance(make_survey(Moments.zero(1, 1), size, compiled=True), LibrarySurvey)


def test_a_pass_that_finds_something_else_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def adds_otherwise(pixels: Any, sums: Any, totals: Any, picture: Any) -> int:
        sums[1, 2, 0] += 1
        return int(survey_picture(pixels, sums, totals, picture))

    monkeypatch.setattr("lmdali.tools.survey_kernel.survey_picture", adds_otherwise)
    assert isinstance(make_survey(Moments.zero(96, 96), 96, compiled=True), LibrarySurvey)


def test_without_numba_opencv_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("lmdali.tools.survey_kernel", "lmdali.pipeline.crop_kernel"):
        monkeypatch.delitem(sys.modules, name)
    assert isinstance(make_survey(Moments.zero(96, 96), 96, compiled=True), LibrarySurvey)
