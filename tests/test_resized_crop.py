"""`resized_crop`: which windows are drawn, and the reference that resizes them, beside Pillow."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.counter_random import sample_words
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.resized_crop import UNIT_BITS, _axis_weights, draw_windows, resize_table, resize_window


def windows(count: int = 4000, size: int = 256, area: float = 0.08, aspect: float = 4 / 3, **draw: int) -> np.ndarray:
    """(count, 4) int64: y, x, height, width."""
    where = {"seed": 3, "epoch": 1, **draw}
    return np.concatenate(draw_windows(where["seed"], where["epoch"], np.arange(count), size, area, aspect), axis=1)


@given(st.integers(1, 300), st.floats(0.001, 1), st.floats(1, 20), st.integers(0, 2**64 - 1))
def test_windows_lie_inside_and_have_a_pixel(size: int, area: float, aspect: float, seed: int) -> None:
    drawn = windows(50, size, area, aspect, seed=seed)
    assert (drawn[:, :2] >= 0).all() and (drawn[:, 2:] >= 1).all()
    assert (drawn[:, :2] + drawn[:, 2:] <= size).all()


def test_areas_and_aspects_are_those_that_were_asked_for() -> None:
    drawn = windows(20_000)
    height, width = drawn[:, 2], drawn[:, 3]
    share = height * width / 256**2
    # Sides are whole pixels: half a pixel of the smallest is 1 %.
    assert share.min() >= 0.078 and share.max() <= 1
    assert (width / height).max() <= 1.36 and (width / height).min() >= 1 / 1.36
    # As torchvision draws: one window after the other, until it fits.
    random = np.random.default_rng(0)
    theirs = []
    for _ in range(20_000):
        for _ in range(10):
            area, ratio = 256**2 * random.uniform(0.08, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if w <= 256 and h <= 256:
                break
        else:
            w = h = 256
        theirs.append(h * w / 256**2)
    deciles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(share, deciles), np.quantile(theirs, deciles), atol=0.015)
    assert abs(np.log(width / height).mean()) < 0.01
    # Each corner takes part of the room that its window leaves.
    room = 256 - drawn[:, 2:]
    assert 0.48 < (drawn[:, :2] / np.maximum(room, 1)).mean() < 0.52


def test_a_window_of_everything_is_the_image() -> None:
    assert (windows(20, area=1.0, aspect=1.0) == [0, 0, 256, 256]).all()
    # No aspect but 1 fits, and none is drawn in ten times.
    assert ((windows(200, area=1.0, aspect=50.0) == [0, 0, 256, 256]).all(axis=1)).mean() > 0.9


def test_a_samples_window_depends_on_nothing_but_seed_epoch_and_number() -> None:
    config = AugmentConfig.resized()
    numbers = np.array([5, 900, 3, 77, 12, 6])

    def drawn(indices: np.ndarray, seed: int = 1, epoch: int = 2) -> np.ndarray:
        params = draw_params(
            config, seed=seed, epoch=epoch, indices=indices, positions=np.arange(len(indices)), image_size=256
        )
        assert params.sides is not None
        return np.concatenate([params.crop_yx, params.sides, params.flip[:, None]], axis=1)

    together = drawn(numbers)
    assert (drawn(numbers[::-1])[::-1] == together).all()
    assert all((drawn(numbers[at : at + 1])[0] == together[at]).all() for at in range(6))
    for other in (drawn(numbers, seed=2), drawn(numbers, epoch=3)):
        assert (other[:, :4] != together[:, :4]).any(axis=1).all()


def test_windows_never_change_between_versions() -> None:
    """The formulas of docs/format.md on Python's numbers, and frozen values."""
    numbers = np.array([0, 1, 5, 70_000, 2**40])
    frozen = [[13, 34, 149, 177], [47, 9, 201, 222], [28, 6, 217, 182], [43, 1, 213, 255], [9, 34, 229, 187]]
    assert np.concatenate(draw_windows(7, 3, numbers, 256, 0.08, 4 / 3), axis=1).tolist() == frozen
    # Tall and wide ones, so that attempts fail.
    for number, window in zip(range(200), windows(200, 99, 0.4, 9.0).tolist(), strict=True):
        expected = [0, 0, 99, 99]
        for stream in range(16, 26):
            w0, w1, w2, w3 = (int(word[0]) for word in sample_words(3, 1, np.array([number]), stream))
            area, aspect = 99**2 * (0.4 + 0.6 * w0 / 2**32), math.exp(math.log(9) * (w1 / 2**31 - 1))
            height, width = max(1, round(math.sqrt(area / aspect))), max(1, round(math.sqrt(area * aspect)))
            if max(height, width) <= 99:
                expected = [w2 * (100 - height) >> 32, w3 * (100 - width) >> 32, height, width]
                break
        assert window == expected


def test_parts_keep_their_sides() -> None:
    indices = np.arange(9)
    params = draw_params(AugmentConfig.resized(), seed=0, epoch=0, indices=indices, positions=indices, image_size=256)
    assert params.sides is not None
    part = params.part(2, 5)
    assert part.sides is not None and (part.sides == params.sides[2:5]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_area": 0.0}, "min_area must be over 0 and at most 1"),
        ({"min_area": 1.01}, "min_area must be over 0 and at most 1"),
        ({"min_area": float("nan")}, "min_area must be"),
        ({"max_aspect": 0.75}, r"max_aspect must be in 1\.\.100"),
        ({"max_aspect": float("inf")}, r"max_aspect must be in 1\.\.100"),
        ({"min_area": "0.1"}, "min_area must be a number, found '0.1'"),
        ({"max_aspect": None}, "max_aspect must be a number, found None"),
        ({"normalize": "mean_image"}, "takes windows of any size, each for itself: set normalize to channel_mean_std"),
        ({"crop_chunk": 32}, "and crop_chunk to 1"),
    ],
)
def test_what_has_no_meaning_is_refused(fields: dict[str, object], message: str) -> None:
    base = {"crop": "resized", "normalize": "channel_mean", "lighting": "none"}
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**base | fields)  # type: ignore[arg-type]


def test_numpys_numbers_draw_as_their_copies_in_json_do() -> None:
    """NumPy takes the logarithm of a float32 in float32: resumed from JSON, windows would be others."""
    given_ = AugmentConfig(crop="resized", normalize="none", lighting="none", max_aspect=np.float32(4 / 3))  # type: ignore[arg-type]
    assert type(json.loads(json.dumps(asdict(given_)))["max_aspect"]) is type(given_.max_aspect) is float


def test_lighting_goes_with_it() -> None:
    config = AugmentConfig(crop="resized", normalize="channel_mean")
    params = draw_params(config, seed=0, epoch=0, indices=np.arange(4), positions=np.arange(4), image_size=256)
    assert (params.alphas != 0).all()


@pytest.mark.parametrize(
    ("size", "side"), [(256, 224), (48, 32), (20, 40), (40, 7), (5, 1), (512, 1), (300, 2), (1, 3)]
)
def test_weights_add_up_and_stay_inside(size: int, side: int) -> None:
    table = resize_table(size, side)
    assert table.weights.shape == (size + 1, side, max(2, table.counts.max()))
    for length in range(1, size + 1):
        count = table.counts[length]
        assert (table.weights[length].sum(axis=1) == 2**UNIT_BITS).all()
        assert not table.weights[length, :, count:].any() and table.weights[length].max() <= 2**UNIT_BITS
        assert (table.firsts[length] >= 0).all() and (table.firsts[length] + count <= length).all()
    # So many pixels are looked at, and a channel of the brightest of them fills 32 bits at most.
    assert 255 * 2 ** (2 * UNIT_BITS) + 2 ** (2 * UNIT_BITS - 1) < 2**32


@pytest.mark.parametrize("length", [511, 512, 1000, 3000, 3001])
def test_no_weight_is_far_from_the_filters(length: int) -> None:
    """Of thousands of pixels each has a weight of a unit or two, and the rounding of all of them is as much as ten."""
    for side in (1, 2, 3):
        first, weights = _axis_weights(length, side)
        centers, reach = (np.arange(side)[:, None] + 0.5) * length / side, length / side
        shares = (1 - np.abs(first[:, None] + np.arange(weights.shape[1]) + 0.5 - centers) / reach).clip(0)
        exact = 2**UNIT_BITS * shares / shares.sum(axis=1, keepdims=True)
        assert (weights >= 0).all() and np.abs(weights - exact).max() <= 1.5


def test_a_window_of_the_patchs_size_is_the_patch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 33, 3), np.uint8)
    assert (resize_window(pixels, 33) == pixels).all()
    assert (resize_window(np.full((7, 90, 3), 255, np.uint8), 33) == 255).all()


@pytest.mark.parametrize(("height", "width"), [(90, 90), (30, 17), (1, 5), (256, 231), (64, 8), (2, 1)])
def test_pixels_are_those_of_pillows_bilinear_filter(height: int, width: int) -> None:
    """Pillow rounds to 8 bits between the sides: a gray level now and then."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(resize_window(pixels, 64) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.3
