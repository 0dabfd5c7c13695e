from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, AugmentParams, draw_params
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.eigenbasis import Eigenbasis, solve
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.pixel_transform import PixelTransform, pixel_transform
from lmdali.tools.augment_options import AUGMENTS

SIX_PIXELS = ((188, 188, 188), (68, 68, 68), (140, 128, 116), (116, 128, 140), (131, 122, 131), (125, 134, 125))

GOLDEN_CROPS = [[13, 29], [32, 11], [0, 10], [3, 21]]
GOLDEN_FLIPS = [True, True, False, False]
GOLDEN_CHUNK_CROPS = [[8, 21], [22, 26], [3, 9], [25, 8]]
GOLDEN_CHUNK_FLIPS = [True, True, False, True]
GOLDEN_ALPHAS = [
    [-0.015214802697300911, -0.026035543531179428, 0.10370466858148575],
    [0.06315003335475922, -0.006101937033236027, 0.061065394431352615],
    [-0.059641215950250626, 0.06399144977331161, 0.012236608192324638],
    [-0.1703457236289978, 0.15166175365447998, -0.015617353841662407],
]


def draw(
    config: AugmentConfig, indices: Any, positions: Any = None, *, seed: int = 0, epoch: int = 0, image_size: int = 256
) -> AugmentParams:
    indices = np.asarray(indices)
    places = indices if positions is None else np.asarray(positions)
    return draw_params(config, seed=seed, epoch=epoch, indices=indices, positions=places, image_size=image_size)


def basis_of(pixels: Any) -> Eigenbasis:
    image = np.array(pixels, np.uint8)
    image = image.reshape(1, -1, 3) if image.ndim == 2 else image
    moments = Moments.zero(*image.shape[:2])
    moments.add_image(image)
    return solve(moments)


def given_params(crop_yx: Any, flip: Any, alphas: Any = None) -> AugmentParams:
    alphas = np.zeros((len(flip), 3)) if alphas is None else alphas
    return AugmentParams(np.array(crop_yx, np.int64), np.array(flip, np.bool_), np.array(alphas, np.float32))


def same(a: AugmentParams, b: AugmentParams) -> bool:
    return bool((a.crop_yx == b.crop_yx).all() and (a.flip == b.flip).all() and (a.alphas == b.alphas).all())


# Draws.


def test_draws_never_change_between_versions() -> None:
    params = draw(AugmentConfig.paper(), [0, 1, 2, 10**9], seed=0, epoch=0)
    assert params.crop_yx.tolist() == GOLDEN_CROPS
    assert params.flip.tolist() == GOLDEN_FLIPS
    # 1e-7 and not equality: libm may differ in the last bit of a logarithm or cosine between machines.
    np.testing.assert_allclose(params.alphas, GOLDEN_ALPHAS, rtol=0, atol=1e-7)


def test_crops_cover_all_1089_offsets_about_uniformly() -> None:
    count = 200_000
    params = draw(AugmentConfig.paper(), np.arange(count))
    cells = params.crop_yx[:, 0] * 33 + params.crop_yx[:, 1]
    assert params.crop_yx.min() == 0 and params.crop_yx.max() == 32
    observed = np.bincount(cells, minlength=1089)
    assert observed.min() > 0
    expected = count / 1089
    chi_squared = ((observed - expected) ** 2 / expected).sum()
    assert abs(chi_squared - 1088) < 5 * (2 * 1088) ** 0.5


def test_half_of_all_samples_are_flipped_independently_of_their_crop() -> None:
    params = draw(AugmentConfig.paper(), np.arange(100_000))
    assert abs(params.flip.mean() - 0.5) < 5 * 0.5 / 100_000**0.5
    for axis in (0, 1):
        assert abs(np.corrcoef(params.flip, params.crop_yx[:, axis])[0, 1]) < 0.02
    assert abs(np.corrcoef(params.crop_yx.T)[0, 1]) < 0.02


def test_alphas_are_normal_with_standard_deviation_a_tenth() -> None:
    count = 100_000
    alphas = draw(AugmentConfig.paper(), np.arange(count)).alphas.astype(np.float64)
    assert np.abs(alphas.mean(axis=0)).max() < 4 * 0.1 / count**0.5
    assert np.abs(alphas.std(axis=0) / 0.1 - 1).max() < 0.01
    assert np.abs(np.corrcoef(alphas.T) - np.eye(3)).max() < 4 / count**0.5
    assert np.abs((alphas**3).mean(axis=0) / 1e-3).max() < 0.05  # symmetric
    assert np.abs((alphas**4).mean(axis=0) / 3e-4 - 1).max() < 0.05  # with a normal's tails
    assert (np.abs(alphas).max(axis=0) > 0.38).all()


def test_a_sample_is_drawn_anew_in_each_epoch_and_for_each_seed() -> None:
    indices = np.arange(2000)
    first = draw(AugmentConfig.paper(), indices)
    for other in (draw(AugmentConfig.paper(), indices, epoch=1), draw(AugmentConfig.paper(), indices, seed=1)):
        assert 0.4 < (first.flip == other.flip).mean() < 0.6
        assert (first.crop_yx == other.crop_yx).all(axis=1).mean() < 0.01
        assert abs(np.corrcoef(first.alphas[:, 0], other.alphas[:, 0])[0, 1]) < 0.1


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40), st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_a_sample_gets_the_same_draws_in_any_company(indices: list[int], seed: int, epoch: int) -> None:
    config = AugmentConfig.paper()
    together = draw(config, indices, seed=seed, epoch=epoch)
    backwards = draw(config, indices[::-1], seed=seed, epoch=epoch)
    assert same(together, AugmentParams(backwards.crop_yx[::-1], backwards.flip[::-1], backwards.alphas[::-1]))
    for position, index in enumerate(indices):
        assert same(together.part(position, position + 1), draw(config, [index], seed=seed, epoch=epoch))


def test_crops_do_not_depend_on_whether_flips_or_lighting_are_wanted() -> None:
    indices = np.arange(100)
    paper, pixels = draw(AugmentConfig.paper(), indices), draw(AugmentConfig.pixels(), indices)
    unflipped = draw(AugmentConfig(flip=False), indices)
    assert (paper.crop_yx == pixels.crop_yx).all() and (paper.flip == pixels.flip).all()
    assert (paper.crop_yx == unflipped.crop_yx).all() and (paper.alphas == unflipped.alphas).all()
    assert not unflipped.flip.any() and not pixels.alphas.any()


@pytest.mark.parametrize(("image_size", "offset"), [(256, 16), (255, 15), (224, 0)])
def test_the_central_view_is_cut_from_the_middle(image_size: int, offset: int) -> None:
    params = draw(AugmentConfig.center(), [5, 6], image_size=image_size)
    assert params.crop_yx.tolist() == [[offset, offset]] * 2
    assert not params.flip.any() and not params.alphas.any()


def test_ten_views_are_the_papers_in_its_order() -> None:
    params = draw(AugmentConfig.ten_crop(), [3, 8])
    five = [[0, 0], [0, 32], [16, 16], [32, 0], [32, 32]]
    assert params.crop_yx.tolist() == five * 4
    assert params.flip.tolist() == ([False] * 5 + [True] * 5) * 2
    assert params.alphas.shape == (20, 3) and not params.alphas.any()


def test_a_chunk_of_the_order_shares_a_crop_and_a_flip_and_no_light() -> None:
    config = AugmentConfig(crop_chunk=32)
    samples = np.random.default_rng(0).permutation(1280)
    params = draw(config, samples, np.arange(1280))
    views = np.column_stack([params.crop_yx, params.flip]).reshape(40, 32, 3)
    assert (views == views[:, :1]).all(), "4 draws for a minibatch of 128"
    assert len(np.unique(views[:, 0], axis=0)) > 30 and 5 < views[:, 0, 2].sum() < 35
    assert params.alphas.tolist() == draw(AugmentConfig.paper(), samples).alphas.tolist()


def test_draws_of_chunks_never_change_between_versions() -> None:
    params = draw(AugmentConfig(crop_chunk=32), [0, 1, 2, 3], [31, 32, 96, 10**9])
    assert params.crop_yx.tolist() == GOLDEN_CHUNK_CROPS
    assert params.flip.tolist() == GOLDEN_CHUNK_FLIPS


def test_chunks_have_the_same_crops_whatever_part_of_an_epoch_is_asked_for() -> None:
    config = AugmentConfig(crop_chunk=5)
    whole = draw(config, np.arange(100, 200), np.arange(100), epoch=4)
    for first, stop in ((0, 3), (3, 12), (47, 100)):
        part = draw(config, np.arange(100 + first, 100 + stop), np.arange(first, stop), epoch=4)
        assert same(part, whole.part(first, stop))
    assert not same(whole, draw(config, np.arange(100, 200), np.arange(100), epoch=5))


def test_chunks_do_not_crop_as_the_samples_of_their_numbers_do() -> None:
    each = draw(AugmentConfig.paper(), np.arange(50)).crop_yx
    assert (draw(AugmentConfig(crop_chunk=2), np.arange(100)).crop_yx[::2] != each).any(axis=1).sum() > 40


def test_images_of_the_crops_own_size_leave_one_offset() -> None:
    params = draw(AugmentConfig.paper(), np.arange(50), image_size=224)
    assert not params.crop_yx.any()
    assert 5 < params.flip.sum() < 45


def test_a_crop_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crop_size 224 is larger than the stored images \(200 pixels\)"):
        draw(AugmentConfig.paper(), [0], image_size=200)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop": "corner"},
        {"normalize": "caffe"},
        {"lighting": "strong"},
        {"crop_size": 0},
        {"lighting_std": -0.1},
        {"lighting_std": float("nan")},
        {"crop": "center"},
        {"crop": "ten", "flip": False},
        {"crop": "center", "lighting": "none"},
        {"crop": "center", "lighting": "none", "flip": False, "crop_chunk": 32},
        {"crop_chunk": 0},
        {"lighting_epochs": -1},
        {"lighting": "none", "lighting_epochs": 67},
        {"mean_window": "corner"},
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AugmentConfig(**fields)


def test_presets_are_what_they_are_named_after() -> None:
    assert AugmentConfig.paper() == AugmentConfig(
        crop_size=224, crop="random", flip=True, normalize="mean_image", lighting="eigenvalues", lighting_std=0.1
    )
    assert (AugmentConfig.original2012().lighting, AugmentConfig.original2012().lighting_rescale) == ("roots", True)
    assert [c.num_views for c in (AugmentConfig.paper(), AugmentConfig.center(), AugmentConfig.ten_crop())] == [
        1,
        1,
        10,
    ]
    assert not AugmentConfig.pixels().needs_basis and AugmentConfig.center().needs_basis


# Arithmetic.


def shift_of(config: AugmentConfig) -> NDArray[np.float32]:
    transform = pixel_transform(config, basis_of(SIX_PIXELS), 1) if config.normalize == "none" else None
    assert transform is not None
    return transform.shifts(given_params([[0, 0]], [False], [[0.1, -0.05, 0.2]]))[0]


def test_lighting_of_the_hand_made_pixels_is_the_published_vector() -> None:
    roots = shift_of(AugmentConfig(normalize="none", lighting="roots"))
    np.testing.assert_allclose(roots, [2.77128129, 4.15692194, 3.46410162], rtol=1e-6)
    eigenvalues = shift_of(AugmentConfig(normalize="none", lighting="eigenvalues"))
    np.testing.assert_allclose(eigenvalues, [0.79600898, 0.82660974, 0.82262947], rtol=1e-6)


def test_the_2012_code_divides_by_one_point_one_after_lighting() -> None:
    basis = basis_of(SIX_PIXELS)
    config = AugmentConfig(normalize="channel_mean", lighting="roots", lighting_rescale=True, crop_size=1)
    transform = pixel_transform(config, basis, 1)
    pixel = np.array([[[[138, 108, 158]]]], np.uint8)  # the mean is 128: (10, -20, 30) above it
    out = apply_params(pixel, given_params([[0, 0]], [False], [[0.1, -0.05, 0.2]]), transform, 1)
    np.testing.assert_allclose(out[0, 0, 0], [11.61025572, -14.40279824, 30.42191056], rtol=1e-6)


def test_after_the_last_lit_epoch_images_are_neither_lit_nor_divided() -> None:
    config = AugmentConfig(
        normalize="channel_mean_std", lighting="roots", lighting_rescale=True, lighting_epochs=67, crop_size=1
    )
    basis = basis_of(SIX_PIXELS)
    transform, plain = pixel_transform(config, basis, 1), 1 / basis.std
    for epoch in (0, 66, 67, 68, 89):
        params = draw(config, np.arange(20), epoch=epoch, image_size=1)
        arithmetic, lit = transform.at(epoch), epoch < 67
        np.testing.assert_allclose(arithmetic.scale, plain / 1.1 if lit else plain, rtol=1e-6)
        assert params.alphas.any() == arithmetic.shifts(params).any() == lit
        same_crops = draw(replace(config, lighting_epochs=None), np.arange(20), epoch=epoch, image_size=1)
        assert params.flip.tolist() == same_crops.flip.tolist()
    pixel = np.array([[[[138, 108, 158]]]], np.uint8)
    out = apply_params(pixel, given_params([[0, 0]], [False]), transform.at(67), 1)
    np.testing.assert_allclose(out[0, 0, 0], [10, -20, 30] * plain, rtol=1e-6)


def test_without_rescaling_the_arithmetic_of_all_epochs_is_one() -> None:
    config = AugmentConfig(normalize="none", lighting="roots", lighting_epochs=3)
    transform = pixel_transform(config, basis_of(SIX_PIXELS), 1)
    assert transform.at(0) is transform.at(3) is transform
    assert not AugmentConfig.pixels().is_lit(0) and not replace(config, lighting_epochs=0).is_lit(0)


def test_original2012_is_that_arithmetic_with_the_mean_image() -> None:
    assert AugmentConfig.original2012() == AugmentConfig(
        crop_chunk=32,
        normalize="mean_image",
        mean_window="center",
        lighting="roots",
        lighting_rescale=True,
        lighting_epochs=67,
    )


def test_standard_deviations_of_the_shift_are_those_of_the_covariance() -> None:
    basis = basis_of(SIX_PIXELS)
    transform = pixel_transform(AugmentConfig(normalize="none", lighting="roots"), basis, 1)
    shifts = transform.shifts(draw(AugmentConfig.paper(), np.arange(100_000)))
    np.testing.assert_allclose(shifts.std(axis=0), 0.1 * basis.std, rtol=0.01)


def coordinates(size: int) -> NDArray[np.uint8]:
    """(1, size, size, 3): red is the row, green the column."""
    image = np.zeros((1, size, size, 3), np.uint8)
    image[0, :, :, 0] = np.arange(size)[:, None]
    image[0, :, :, 1] = np.arange(size)
    return image


def identity(size: int) -> PixelTransform:
    return pixel_transform(AugmentConfig.pixels(), None, size)


def test_a_crop_shows_its_own_offset() -> None:
    out = apply_params(coordinates(8), given_params([[2, 3]], [False]), identity(8), 4)
    assert out.dtype == np.float32 and out.shape == (1, 4, 4, 3)
    assert out[0, :, 0, 0].tolist() == [2, 3, 4, 5]
    assert out[0, 0, :, 1].tolist() == [3, 4, 5, 6]


def test_a_flip_mirrors_columns_after_the_crop() -> None:
    out = apply_params(coordinates(8), given_params([[2, 3]], [True]), identity(8), 4)
    assert out[0, :, 0, 0].tolist() == [2, 3, 4, 5]
    assert out[0, 0, :, 1].tolist() == [6, 5, 4, 3]


def test_the_mean_image_is_cut_and_mirrored_with_the_picture() -> None:
    image = coordinates(8)
    transform = PixelTransform(image[0].astype(np.float32), np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    out = apply_params(image, given_params([[2, 3], [4, 0]], [True, False]), transform, 4)
    assert not out.any()


@pytest.mark.parametrize(("side", "first"), [(8, 2), (9, 2)])
def test_the_central_window_is_subtracted_whatever_the_crop_and_never_mirrored(side: int, first: int) -> None:
    config = AugmentConfig(mean_window="center", lighting="none", crop_size=4)
    transform = pixel_transform(config, basis_of(coordinates(side)[0]), side)
    assert transform.centered
    flat = np.full((1, side, side, 3), 100, np.uint8)
    out = apply_params(flat, given_params([[0, 0], [3, 4], [1, 2]], [False, True, True]), transform, 4)
    for view in out:
        assert (100 - view[:, 0, 0]).tolist() == [first, first + 1, first + 2, first + 3]
        assert (100 - view[0, :, 1]).tolist() == [first, first + 1, first + 2, first + 3]


def test_without_a_mean_image_there_is_no_window() -> None:
    basis = basis_of(coordinates(8)[0])
    for normalize in ("channel_mean", "none"):
        config = AugmentConfig(normalize=normalize, mean_window="center", crop_size=4)  # type: ignore[arg-type]
        assert not pixel_transform(config, basis, 8).centered


def test_shift_comes_before_scale() -> None:
    transform = PixelTransform(
        np.full((2, 2, 3), 1, np.float32), np.array([2, 1, 0.5], np.float32), np.eye(3, dtype=np.float32) * 10
    )
    image = np.full((1, 2, 2, 3), 5, np.uint8)
    out = apply_params(image, given_params([[0, 0]], [False], [[1, 2, -1]]), transform, 1)
    assert out.reshape(3).tolist() == [(5 - 1 + 10) * 2, 5 - 1 + 20, (5 - 1 - 10) * 0.5]


def test_views_of_one_sample_are_adjacent() -> None:
    images = np.concatenate([coordinates(8), 100 + coordinates(8)])
    params = draw(AugmentConfig(crop_size=4, crop="ten", flip=False, lighting="none"), [0, 1], image_size=8)
    out = apply_params(images, params, identity(8), 4)
    assert [(int(view[0, 0, 0]), int(view[0, 0, 1])) for view in out[:10]] == [
        (0, 0),
        (0, 4),
        (2, 2),
        (4, 0),
        (4, 4),
        (0, 3),
        (0, 7),
        (2, 5),
        (4, 3),
        (4, 7),
    ]
    assert (out[10:] - out[:10])[..., :2].min() == (out[10:] - out[:10])[..., :2].max() == 100


@pytest.mark.parametrize("normalize", ["channel_mean", "channel_mean_std", "mean_image"])
def test_normalisation_centres_the_very_image_it_was_computed_from(normalize: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    config = AugmentConfig(normalize=normalize, lighting="none", crop="center", flip=False, crop_size=8)
    transform = pixel_transform(config, basis_of(image[0]), 8)
    out = apply_params(image, draw(config, [0], image_size=8), transform, 8)
    assert np.abs(out.mean(axis=(0, 1, 2))).max() < 1e-4
    if normalize == "channel_mean_std":
        np.testing.assert_allclose(out.std(axis=(0, 1, 2)), 1, rtol=1e-5)
    if normalize == "mean_image":
        assert not out.any()


def test_the_constants_of_pretrained_networks_need_no_statistics() -> None:
    """As torchvision's ToTensor and Normalize."""
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    config = AugmentConfig(normalize="imagenet", lighting="none", crop="center", flip=False, crop_size=8)
    out = apply_params(image, draw(config, [0], image_size=8), pixel_transform(config, None, 8), 8)
    expected = (image[0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(out[0], expected, rtol=0, atol=1e-5)
    assert not config.needs_basis
    lit = replace(config, crop="random", lighting="roots")
    with pytest.raises(ConfigError, match="lmdali pca"):
        pixel_transform(lit, None, 8)
    shift = pixel_transform(lit, basis_of(image[0]), 8)
    np.testing.assert_array_equal(shift.scale, pixel_transform(config, None, 8).scale)
    assert shift.vectors.any()


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize(("views", "crop"), [(1, "center"), (10, "ten")])
def test_evaluation_is_normalised_as_training_is(name: str, views: int, crop: str) -> None:
    training = replace(AUGMENTS[name](), crop_size=112)
    held_out = training.evaluation(views)
    assert (held_out.crop, held_out.num_views, held_out.crop_size) == (crop, views, 112)
    assert (held_out.normalize, held_out.mean_window) == (training.normalize, training.mean_window)
    assert not held_out.flip and held_out.lighting == "none" and held_out.evaluation(views) == held_out


@pytest.mark.parametrize("views", [0, 2, 5])
def test_evaluation_has_one_view_or_ten(views: int) -> None:
    with pytest.raises(ConfigError, match=f"views must be 1 or 10, found {views}"):
        AugmentConfig.paper().evaluation(views)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    transform = pixel_transform(AugmentConfig(normalize="channel_mean_std"), basis_of([[7, 7, 7], [7, 8, 9]]), 256)
    assert np.isfinite(transform.scale).all()


def test_statistics_of_another_size_or_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="lmdali pca"):
        pixel_transform(AugmentConfig.paper(), None, 256)
    with pytest.raises(ConfigError, match="needs a mean image of"):
        pixel_transform(AugmentConfig.paper(), basis_of(SIX_PIXELS), 256)


def test_every_offset_and_flip_gives_a_patch_of_its_own() -> None:
    params = given_params([[y, x] for y in range(3) for x in range(3)] * 2, [False] * 9 + [True] * 9)
    out = apply_params(coordinates(6), params.part(0, 18), identity(6), 4)
    corners = Counter((int(view[0, 0, 0]), int(view[0, 0, 1]), int(view[0, 3, 1])) for view in out)
    assert len(corners) == 18
