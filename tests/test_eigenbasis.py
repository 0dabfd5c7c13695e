from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline import moments as moments_module
from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE, load_eigenbasis, load_moments, save_statistics, solve
from lmdali.pipeline.errors import InputError, IntegrityError, LmdaliError
from lmdali.pipeline.moments import Moments

SIX_PIXELS = np.array(
    [[188, 188, 188], [68, 68, 68], [140, 128, 116], [116, 128, 140], [131, 122, 131], [125, 134, 125]], np.uint8
)


def moments_of(*images: NDArray[np.uint8], keep_image: bool = True) -> Moments:
    moments = Moments.zero(*images[0].shape[:2]) if keep_image else Moments.zero()
    for image in images:
        moments.add_image(image)
    return moments


def equal(a: Moments, b: Moments) -> bool:
    sums_equal = (a.image_sums is None) == (b.image_sums is None) and (
        a.image_sums is None or bool((a.image_sums == b.image_sums).all())
    )
    return a.to_json() == b.to_json() and sums_equal


def formula_image(i: int) -> NDArray[np.uint8]:
    y, x, c = np.mgrid[0:64, 0:64, 0:3]
    return ((7 * x + 13 * y + 29 * c + 31 * i + ((x * y) % 97)) % 256).astype(np.uint8)


def test_six_pixels_have_the_eigenvalues_3600_96_and_18() -> None:
    moments = moments_of(SIX_PIXELS.reshape(2, 3, 3))
    assert (moments.num_images, moments.num_pixels) == (1, 6)
    assert moments.sums.tolist() == [768, 768, 768]
    assert moments.products.tolist() == [
        [105810, 105468, 105234],
        [105468, 105576, 105468],
        [105234, 105468, 105810],
    ]
    basis = solve(moments)
    assert basis.covariance.tolist() == [[1251, 1194, 1155], [1194, 1212, 1194], [1155, 1194, 1251]]
    np.testing.assert_allclose(basis.eigenvalues, [3600, 96, 18], rtol=1e-12)
    expected = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
    np.testing.assert_allclose(basis.eigenvectors.T, expected, atol=1e-12)
    assert basis.mean.tolist() == [128, 128, 128]
    np.testing.assert_allclose(basis.unit_eigenvalues, np.array([3600, 96, 18]) / 65025, rtol=1e-12)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["noise", "white", "two levels"]), st.integers(0, 99))
def test_sums_are_those_of_integer_arithmetic(height: int, width: int, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width + 3, 3), np.uint8)
    pixels = {"noise": pixels, "white": np.full_like(pixels, 255), "two levels": pixels // 128 * 255}[kind]
    pixels = pixels[:, 1:-2]  # a view
    moments = moments_of(pixels, pixels, keep_image=False)
    flat = pixels.reshape(-1, 3).astype(np.int64)
    assert moments.sums.tolist() == (2 * flat.sum(axis=0)).tolist()
    assert moments.products.tolist() == (2 * flat.T @ flat).tolist()


def test_sums_of_twelve_megapixels_of_white_are_exact() -> None:
    pixels = np.full((3001, 4001, 3), 255, np.uint8)
    pixels[::7, ::5, 1] = 0
    moments = moments_of(pixels, keep_image=False)
    lit = pixels.reshape(-1, 3) == 255
    assert moments.sums.tolist() == (lit.sum(axis=0) * 255).tolist()
    assert moments.products[0, 1] == (lit[:, 0] & lit[:, 1]).sum() * 255 * 255
    assert moments.products.diagonal().tolist() == (lit.sum(axis=0) * 255 * 255).tolist()


def test_two_formula_images_have_the_published_sums() -> None:
    moments = moments_of(formula_image(0), formula_image(1))
    assert moments.num_pixels == 8192
    assert moments.sums.tolist() == [1045698, 1047746, 1049538]
    assert moments.products.tolist() == [
        [178027560, 151500834, 131754012],
        [151500834, 178496540, 151971606],
        [131754012, 151971606, 179019792],
    ]
    eigenvalues = solve(moments).eigenvalues
    np.testing.assert_allclose(eigenvalues, [8365.902139526834, 5709.0781622330605, 2232.694971956555], rtol=1e-12)


def test_the_brightest_image_is_added_exactly() -> None:
    white = np.full((256, 256, 3), 255, np.uint8)
    moments = moments_of(white)
    assert moments.sums.tolist() == [16_711_680] * 3
    assert moments.products.tolist() == [[4_261_478_400] * 3] * 3  # past int32 and float32


def test_imagenets_numbers_are_solved_without_rounding_on_the_way() -> None:
    # Every image white but for one pixel in all: N * S2 - S1 S1^T is past int64, its difference is tiny.
    count = 1_281_167 * 65536
    sums, products = 255 * count - 1, 65025 * count - 255 * 255 + 254 * 254
    moments = Moments(1_281_167, count, np.full(3, sums), np.full((3, 3), products), None)
    variance = (count * products - sums * sums) / count**2
    basis = solve(moments)
    assert basis.covariance.tolist() == [[variance] * 3] * 3
    assert 0 < variance < 1e-10
    np.testing.assert_allclose(basis.eigenvalues[0], 3 * variance, rtol=1e-9)


def test_an_image_of_one_colour_has_no_variance() -> None:
    basis = solve(moments_of(np.full((4, 4, 3), 77, np.uint8)))
    assert basis.eigenvalues.tolist() == [0, 0, 0]
    assert np.isfinite(basis.eigenvectors).all()


def test_no_pixels_are_an_error() -> None:
    with pytest.raises(IntegrityError, match="no pixels"):
        solve(Moments.zero(8, 8))


@given(st.integers(0, 2**32 - 1))
def test_eigenvectors_rebuild_the_covariance_and_have_their_sign_fixed(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), np.uint8)
    basis = solve(moments_of(image))
    rebuilt = basis.eigenvectors @ np.diag(basis.eigenvalues) @ basis.eigenvectors.T
    np.testing.assert_allclose(rebuilt, basis.covariance, atol=1e-8)
    np.testing.assert_allclose(basis.covariance, np.cov(image.reshape(-1, 3).T, bias=True), rtol=1e-9)
    assert (np.diff(basis.eigenvalues) <= 0).all()
    for vector in basis.eigenvectors.T:
        assert vector[np.abs(vector).argmax()] > 0


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4))
def test_merging_in_any_order_and_grouping_gives_the_same_numbers(seeds: list[int]) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8) for seed in seeds]
    whole = moments_of(*images)
    for arrangement in permutations(images):
        merged = Moments.zero(6, 6)
        for image in arrangement:
            merged.merge(moments_of(image))
        assert equal(merged, whole)
    pairs = moments_of(*images[:2])
    if images[2:]:
        pairs.merge(moments_of(*images[2:]))
    assert equal(pairs, whole)


def test_images_of_different_sizes_leave_no_mean_image_in_either_order() -> None:
    small, large = np.zeros((2, 2, 3), np.uint8), np.ones((3, 3, 3), np.uint8)
    for first, second in ((small, large), (large, small)):
        merged = moments_of(first)
        merged.merge(moments_of(second))
        assert merged.image_sums is None
        assert merged.num_pixels == 13
        assert solve(merged).mean_image is None


def test_position_sums_stay_exact_past_the_whole_numbers_of_float32() -> None:
    white, moments = np.full((1, 1, 3), 255, np.uint8), Moments.zero(1, 1)
    count = moments_module._EXACT_IN_FLOAT32 + 2
    assert 255 * moments_module._EXACT_IN_FLOAT32 < 2**24 < 255 * count
    for _ in range(count):
        moments.add_image(white)
    assert moments.image_sums is not None and moments.image_sums.tolist() == [[[255 * count] * 3]]


def test_position_sums_that_were_asked_for_do_not_change_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "_EXACT_IN_FLOAT32", 3)
    moments, expected = Moments.zero(64, 64), np.zeros((64, 64, 3), np.int64)
    for number in range(8):
        before = moments.image_sums
        assert before is not None and (before == expected).all() and before.dtype == np.int64
        moments.add_image(formula_image(number))
        assert (before == expected).all()
        expected += formula_image(number)


def test_the_mean_image_is_the_mean_of_each_pixel() -> None:
    mean_image = solve(moments_of(formula_image(0), formula_image(1))).mean_image
    expected = (formula_image(0).astype(np.float64) + formula_image(1)) / 2
    assert mean_image is not None and mean_image.dtype == np.float32
    assert (mean_image == expected.astype(np.float32)).all()


def test_json_keeps_integers_past_float64(tmp_path: Path) -> None:
    huge = 2**53 + 1
    moments = Moments(1, 1, np.array([huge, 1, 2]), np.full((3, 3), huge), None)
    text = json.dumps(moments.to_json())
    assert str(huge) in text
    assert equal(Moments.from_json(json.loads(text), None), moments)


# Files.


def test_statistics_come_back_from_the_disk_bit_for_bit(tmp_path: Path) -> None:
    moments = moments_of(formula_image(0), formula_image(1))
    saved = save_statistics(tmp_path, moments, "d1935")
    loaded, digest = load_moments(tmp_path)
    assert equal(loaded, moments) and digest == "d1935"
    basis = load_eigenbasis(tmp_path)
    assert basis.dataset_digest == "d1935"
    for name in ("mean", "covariance", "eigenvalues", "eigenvectors", "mean_image"):
        assert (getattr(basis, name) == getattr(saved, name)).all()


def test_the_document_says_its_units_order_and_roots(tmp_path: Path) -> None:
    save_statistics(tmp_path, moments_of(SIX_PIXELS.reshape(2, 3, 3)), "x")
    document = json.loads((tmp_path / STATISTICS_FILE).read_text())
    assert document["channel_order"] == "RGB" and document["value_range"] == [0, 255]
    np.testing.assert_allclose(document["eigenvalue_roots"], [60, 96**0.5, 18**0.5])
    np.testing.assert_allclose(document["unit_scale"]["eigenvalues"], [3600 / 65025, 96 / 65025, 18 / 65025])
    assert document["units"]["eigenvalues"] == "gray levels squared (variances)"
    assert document["moments"]["sums"] == [768, 768, 768]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        save_statistics(tmp_path, moments_of(formula_image(0)), "x")
        contents.append([(tmp_path / name).read_bytes() for name in (STATISTICS_FILE, MEAN_FILE)])
    assert contents[0] == contents[1]


def test_a_changed_mean_image_is_refused(tmp_path: Path) -> None:
    save_statistics(tmp_path, moments_of(formula_image(0)), "x")
    payload = bytearray((tmp_path / MEAN_FILE).read_bytes())
    payload[-5] ^= 1
    (tmp_path / MEAN_FILE).write_bytes(payload)
    with pytest.raises(IntegrityError, match=r"mean\.npy: differs from the hash"):
        load_eigenbasis(tmp_path)
    (tmp_path / MEAN_FILE).unlink()
    with pytest.raises(IntegrityError, match="lmdali pca"):
        load_eigenbasis(tmp_path)


def test_missing_statistics_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises((InputError, IntegrityError), match=r"statistics\.json.*lmdali pca"):
        load_eigenbasis(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        {"format": "other"},
        {"version": 2},
        {"version": "1"},
        {"channel_order": "BGR"},
        {"moments": None},
        {"moments": {"num_images": 1, "num_pixels": 10**30, "sums": [10**30] * 3, "products": [[1] * 3] * 3}},
        {"moments": {"num_images": 1, "num_pixels": 4, "sums": [1], "products": [[1]]}},
        {"moments": {"num_images": 0, "num_pixels": 0, "sums": [0] * 3, "products": [[0] * 3] * 3}},
        {"mean_image": []},
    ],
)
def test_damaged_statistics_are_one_of_our_errors(tmp_path: Path, edit: dict[str, object]) -> None:
    save_statistics(tmp_path, moments_of(formula_image(0)), "x")
    path = tmp_path / STATISTICS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(LmdaliError):
        load_eigenbasis(tmp_path)
