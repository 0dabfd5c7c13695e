from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from dataclasses import asdict

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.resize import ResizeRecipe, geometry_oddities, resize_and_crop, scaled_sides

Pixels = npt.NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def opencv_threads() -> Iterator[None]:
    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (256, 256, (256, 256)),
        (500, 375, (341, 256)),
        (375, 500, (256, 341)),
        (480, 640, (256, 341)),
        (512, 513, (256, 257)),  # 256.5 rounds up
        (1024, 1025, (256, 256)),  # 256.25 rounds down
        (1, 1, (256, 256)),
        (100, 150, (256, 384)),
        (3, 2, (384, 256)),
        (2, 2049, (256, 262272)),
    ],
)
def test_sides_are_scaled_and_rounded_half_up(height: int, width: int, expected: tuple[int, int]) -> None:
    assert scaled_sides(height, width, 256) == expected


@given(st.integers(1, 70_000), st.integers(1, 70_000), st.sampled_from([1, 64, 224, 256, 500]))
def test_the_shorter_side_is_exact_and_the_other_at_least_that(height: int, width: int, size: int) -> None:
    new_height, new_width = scaled_sides(height, width, size)
    assert min(new_height, new_width) == size
    assert (new_height if height <= width else new_width) == size
    assert abs(new_width - width * size / min(height, width)) <= 0.5 + 1e-6


def test_a_picture_of_the_right_size_is_only_cropped() -> None:
    pixels = noise(256, 301)
    assert np.array_equal(resize_and_crop(pixels), pixels[:, 22:278])
    pixels = noise(300, 256)
    assert np.array_equal(resize_and_crop(pixels), pixels[22:278])


def test_halving_is_the_mean_of_two_by_two_blocks() -> None:
    pixels = noise(512, 512)
    blocks = pixels.reshape(256, 2, 256, 2, 3).astype(np.int64).sum(axis=(1, 3))
    difference = np.abs(resize_and_crop(pixels) * 4.0 - blocks)
    assert difference.max() <= 2


@pytest.mark.parametrize(
    ("height", "width", "interpolation"),
    [(375, 500, cv2.INTER_AREA), (500, 257, cv2.INTER_AREA), (255, 300, cv2.INTER_CUBIC), (56, 75, cv2.INTER_CUBIC)],
)
def test_area_down_cubic_up_then_the_central_square(height: int, width: int, interpolation: int) -> None:
    pixels = noise(height, width)
    new_height, new_width = scaled_sides(height, width, 256)
    resized = cv2.resize(pixels, (new_width, new_height), interpolation=interpolation)
    top, left = (new_height - 256) // 2, (new_width - 256) // 2
    assert np.array_equal(resize_and_crop(pixels), resized[top : top + 256, left : left + 256])


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_any_picture_becomes_an_own_square(height: int, width: int) -> None:
    pixels = noise(height, width)
    result = resize_and_crop(pixels)
    assert result.shape == (256, 256, 3) and result.dtype == np.uint8
    assert result.flags.c_contiguous and result.flags.owndata and result.flags.writeable
    assert not np.shares_memory(result, pixels)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_one_colour_stays_that_colour(height: int, width: int, level: int) -> None:
    pixels = np.full((height, width, 3), level, np.uint8)
    assert (resize_and_crop(pixels, ResizeRecipe(size=32)) == level).all()


def test_turning_the_picture_turns_the_result() -> None:
    for height, width in ((600, 700), (40, 90)):
        pixels = noise(height, width)
        turned = resize_and_crop(np.ascontiguousarray(pixels.transpose(1, 0, 2)))
        difference = np.abs(turned.transpose(1, 0, 2).astype(int) - resize_and_crop(pixels))
        assert difference.max() <= 1


def test_the_number_of_threads_changes_nothing(opencv_threads: None) -> None:
    for pixels in (noise(701, 977), noise(99, 131)):
        results = []
        for threads in (0, 1, 2, 8):
            cv2.setNumThreads(threads)
            results.append(resize_and_crop(pixels))
        assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (65500, 1), (2, 65500), (255, 65500), (300, 30_000)])
def test_extreme_shapes_cost_bounded_memory(height: int, width: int) -> None:
    pixels = noise(height, width)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resize_and_crop(pixels).shape == (256, 256, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 150_000


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("shorter", [1, 2, 4, 32])
def test_a_strip_without_its_ends_gives_the_same_square(shorter: int, turn: bool) -> None:
    # A power of two makes the scale a whole number, so that not even the rounding of the longer side differs.
    pixels = noise(shorter, 40 * shorter)
    if turn:
        pixels = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    whole = resize_and_crop(pixels, ResizeRecipe(size=64))
    assert np.array_equal(resize_and_crop(pixels, ResizeRecipe(size=64, max_resized_side=256)), whole)


def test_a_strip_whose_scale_is_not_whole_moves_by_half_a_pixel_at_most() -> None:
    ramp = np.arange(4800, dtype=np.float64) / 4799 * 255
    for shorter in (3, 7, 11):
        pixels = np.repeat(np.repeat(ramp[None, :, None], shorter, 0), 3, 2).astype(np.uint8)
        whole = resize_and_crop(pixels, ResizeRecipe(size=64, max_resized_side=10**6)).astype(int)
        strip = resize_and_crop(pixels, ResizeRecipe(size=64)).astype(int)
        assert np.abs(strip - whole).max() <= 1


def test_the_recipe_is_json_and_refuses_what_cannot_work() -> None:
    recipe = ResizeRecipe(size=128)
    assert ResizeRecipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
    for wrong in ({"size": 0}, {"size": 5000}, {"down": "lanczos"}, {"crop": "random"}, {"max_resized_side": 512}):
        with pytest.raises(ConfigError):
            ResizeRecipe(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "width", "names"),
    [
        (256, 1024, ()),
        (256, 1025, ("extreme_aspect",)),
        (1025, 256, ("extreme_aspect",)),
        (255, 255, ("upscaled",)),
        (300, 255, ("upscaled",)),
        (1, 5, ("upscaled", "extreme_aspect")),
    ],
)
def test_odd_sides_are_named(height: int, width: int, names: tuple[str, ...]) -> None:
    assert geometry_oddities(height, width, 256) == names


@settings(max_examples=60)
@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from([1, 7, 8, 32, 64]), st.integers(0, 3))
def test_what_is_not_computed_changes_nothing(height: int, width: int, size: int, multiple: int) -> None:
    """Also where a side is a whole multiple of the result, which OpenCV does by other code."""
    height, width = (size * multiple, max(width, size * multiple)) if multiple else (height, width)
    if min(height, width) <= size:
        return
    pixels = noise(height, width)
    new_height, new_width = scaled_sides(height, width, size)
    whole = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    assert np.array_equal(
        resize_and_crop(pixels, ResizeRecipe.named("area", size)), whole[top : top + size, left : left + size]
    )
