"""Pictures have the statistics of photographs, show their motif, and do not give the class away by colour."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmdali.tools.motifs import MOTIFS, Motif
from lmdali.tools.scenes import COLOUR_AXES, fractal_tiles, natural_colour, render
from lmdali.tools.sketch import Palette, Sketch, coverage, ellipse, limb, triangle

PER_CLASS, SIDE = 14, 112


def generator(number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([0, number], np.uint64)))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(10, PER_CLASS, SIDE, SIDE, 3) uint8, RGB."""
    return np.stack(
        [
            np.stack([render(motif, SIDE, SIDE, generator(1000 * label + i)) for i in range(PER_CLASS)])
            for label, motif in enumerate(MOTIFS)
        ]
    )


def power_slope(gray: np.ndarray) -> float:
    """Slope of log power over log frequency of a square picture, (S, S) float."""
    side = len(gray)
    window = np.hanning(side)
    power = np.abs(np.fft.fft2((gray - gray.mean()) * window * window[:, None])) ** 2
    frequency = np.fft.fftfreq(side) * side
    rings = np.round(np.hypot(frequency, frequency[:, None])).astype(int).ravel()
    spectrum = np.bincount(rings, power.ravel()) / np.bincount(rings)
    octaves = np.arange(3, side // 3)
    return float(np.polyfit(np.log(octaves), np.log(spectrum[octaves]), 1)[0])


def sketch_of(motif: Motif, number: int, reach: float = 1.2, side: int = 121) -> Sketch:
    axis = np.linspace(-reach, reach, side, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    rng = generator(number)
    colours = [natural_colour(rng, luminance) for luminance in (60, 190, 120, 90, 110, 140)]
    palette = Palette(main=colours[0], mark=colours[1], accent=colours[2], grounds=(colours[3], colours[4], colours[5]))
    sketch = Sketch(x=x, y=y, pixel=2 * reach / side, warp=np.zeros_like(x), palette=palette, rng=rng)
    motif.draw(sketch)
    return sketch


def test_noise_power_falls_with_the_square_of_frequency() -> None:
    tiles = fractal_tiles(generator(0))
    assert tiles.shape == (2, 256, 256) and tiles.dtype == np.float32
    assert tiles.std(axis=(1, 2)) == pytest.approx(1, abs=1e-4)
    assert [power_slope(tile) for tile in tiles] == pytest.approx([-2, -2], abs=0.15)
    assert abs(np.corrcoef(tiles[0].ravel(), tiles[1].ravel())[0, 1]) < 0.3


def test_pictures_have_the_spectrum_of_photographs(pictures: np.ndarray) -> None:
    slopes = [power_slope(picture.mean(axis=2)) for picture in pictures.reshape(-1, SIDE, SIDE, 3)]
    assert -3.2 < np.mean(slopes) < -1.8


def test_colour_axes_are_orthonormal() -> None:
    np.testing.assert_allclose(COLOUR_AXES @ COLOUR_AXES.T, np.eye(3), atol=1e-6)


def test_pictures_have_the_colour_covariance_of_photographs(pictures: np.ndarray) -> None:
    values, vectors = np.linalg.eigh(np.cov(pictures.reshape(-1, 3).T / 255))
    gray = abs(vectors[:, 2].sum()) / math.sqrt(3)
    assert math.degrees(math.acos(min(gray, 1.0))) < 6
    assert 0.08 < values[2] < 0.3
    assert 0.04 < values[1] / values[2] < 0.2
    assert 0.01 < values[0] / values[2] < 0.06


def test_colour_does_not_give_the_class_away(pictures: np.ndarray) -> None:
    """Leave-one-out nearest class mean on mean and covariance of colour: chance is 0.1, one picture in 140 is 0.007."""
    flat = pictures.reshape(len(MOTIFS) * PER_CLASS, -1, 3) / 255
    upper = np.triu_indices(3)
    features = np.stack([np.concatenate([pixels.mean(0), np.cov(pixels.T)[upper]]) for pixels in flat])
    features = (features - features.mean(0)) / features.std(0)
    labels = np.repeat(np.arange(len(MOTIFS)), PER_CLASS)
    right = 0
    for i, label in enumerate(labels):
        others = np.arange(len(labels)) != i
        means = np.stack([features[others & (labels == k)].mean(0) for k in range(len(MOTIFS))])
        right += int(np.argmin(((means - features[i]) ** 2).sum(1)) == label)
    assert right / len(labels) < 0.3


def test_rendering_is_a_function_of_the_generator() -> None:
    for motif in MOTIFS[:3]:
        first, again, other = (render(motif, 90, 60, generator(n)) for n in (5, 5, 6))
        assert first.shape == (60, 90, 3) and first.dtype == np.uint8
        np.testing.assert_array_equal(first, again)
        assert (first != other).mean() > 0.5


@pytest.mark.parametrize(("width", "height"), [(16, 400), (700, 90), (1, 1)])
def test_extreme_sizes_render(width: int, height: int) -> None:
    for motif in MOTIFS:
        assert render(motif, width, height, generator(1)).shape == (height, width, 3)


@pytest.mark.parametrize("motif", MOTIFS, ids=lambda motif: motif.name)
def test_a_motif_fills_a_fair_part_of_its_square_in_two_shades(motif: Motif) -> None:
    for number in range(4):
        sketch = sketch_of(motif, number)
        inside = sketch.distance < 0
        assert 0.08 < inside.mean() <= 1
        luminance = sketch.colour.mean(axis=0)[inside]
        assert np.percentile(luminance, 98) - np.percentile(luminance, 2) > 50


@pytest.mark.parametrize("motif", [motif for motif in MOTIFS if not motif.fills_frame], ids=lambda motif: motif.name)
def test_a_motif_that_stands_in_the_scene_is_not_cut_off(motif: Motif) -> None:
    for number in range(4):
        distance = sketch_of(motif, number).distance
        assert min(distance[0].min(), distance[-1].min(), distance[:, 0].min(), distance[:, -1].min()) > 0


def test_zebra_and_leopard_share_their_body() -> None:
    zebra, leopard = (next(motif for motif in MOTIFS if motif.name == name) for name in ("zebra", "leopard"))
    np.testing.assert_array_equal(sketch_of(zebra, 3).distance, sketch_of(leopard, 3).distance)
    assert np.abs(sketch_of(zebra, 3).colour - sketch_of(leopard, 3).colour).mean() > 1


def test_distances_are_signed_and_exact_where_they_claim_to_be() -> None:
    sketch = sketch_of(MOTIFS[0], 0, reach=1.0, side=5)  # x and y are -1, -0.5, 0, 0.5, 1
    circle = ellipse(sketch, (0, 0), (0.5, 0.5))
    assert circle[2] == pytest.approx([0.5, 0, -0.5, 0, 0.5], abs=1e-6)
    rod = limb(sketch, (-0.5, 0), (0.5, 0), 0.25, 0.25)
    assert rod[2] == pytest.approx([0.25, -0.25, -0.25, -0.25, 0.25], abs=1e-6)
    assert rod[0, 2] == pytest.approx(0.75, abs=1e-6)
    corner = triangle(sketch, (-1, -1), (1, -1), (-1, 1))
    assert corner[2, 2] == pytest.approx(0, abs=1e-6)
    assert corner[1, 1] < 0 < corner[4, 4]
    assert coverage(np.array([-1.0, 0.0, 1.0], np.float32), 0.5).tolist() == [1, 0.5, 0]
