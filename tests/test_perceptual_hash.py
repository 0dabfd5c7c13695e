from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline.perceptual_hash import BLANK_SPREAD, MIRROR_BITS, hash_distance, is_blank, picture_hash
from lmdali.pipeline.record_codec import decode_stored, encode_jpeg


def scene(seed: int, side: int = 256) -> np.ndarray:
    """A smooth random picture of whole numbers made without a filter: (side, side, 3) uint8, 60 to 190."""
    coarse = np.random.default_rng(seed).integers(60, 191, (8, 8, 3))
    weights = np.arange(side) % 32
    rows = np.repeat(coarse, side // 8, axis=0) * (32 - weights)[:, None, None]
    rows = rows + np.repeat(np.roll(coarse, -1, axis=0), side // 8, axis=0) * weights[:, None, None]
    return np.repeat(rows // 32, side // 8, axis=1).astype(np.uint8)


def distance(one: int, other: int) -> int:
    return int(hash_distance(np.array([one], np.int64), np.array([other], np.int64))[0])


def reference(pixels: np.ndarray) -> int:
    """OpenCV's floating-point DCT, against the median of all but the mean."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
    waves = cv2.dct(small)[:8, :8].ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False
    return int("".join("1" if bit else "0" for bit in bits), 2)


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_it_is_the_hash_by_a_floating_point_dct(seed: int) -> None:
    ours = picture_hash(scene(seed))
    assert -(2**63) <= ours < 2**63
    assert (ours % 2**64 ^ reference(scene(seed))).bit_count() <= 2, "but for coefficients beside the median"


def test_the_hash_is_part_of_the_format() -> None:
    assert [picture_hash(scene(seed)) % 2**64 for seed in (0, 1)] == [0x1B7CFA683C11DC81, 0x6C237BD7062882F6]


def test_more_light_changes_no_bit_and_one_colour_has_none() -> None:
    for seed in range(5):
        assert picture_hash(scene(seed)) == picture_hash(scene(seed) + np.uint8(50)) != 0
    for level in (0, 77, 255):
        assert picture_hash(np.full((256, 256, 3), level, np.uint8)) == 0


def test_changed_copies_are_near_and_other_pictures_far() -> None:
    pictures = [scene(seed) for seed in range(12)]
    hashes = [picture_hash(picture) for picture in pictures]
    for picture, known in zip(pictures, hashes, strict=True):
        assert distance(known, picture_hash(decode_stored(encode_jpeg(picture, 50)))) <= 3
        assert distance(known, picture_hash(cv2.resize(picture, (100, 100), interpolation=cv2.INTER_AREA))) <= 3
        assert distance(known ^ MIRROR_BITS, picture_hash(np.ascontiguousarray(picture[:, ::-1]))) <= 7
        assert distance(known, picture_hash(np.ascontiguousarray(picture[:, ::-1]))) > 15
    assert min(distance(one, other) for one in hashes for other in hashes if one != other) > 11


def test_the_number_of_threads_changes_nothing() -> None:
    before = cv2.getNumThreads()
    try:
        results = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            results.append([picture_hash(scene(seed)) for seed in range(4)])
    finally:
        cv2.setNumThreads(before)
    assert results[0] == results[1]


def test_memory_that_may_not_be_written_is_hashed() -> None:
    pixels = scene(3)
    pixels.flags.writeable = False
    assert picture_hash(pixels) == picture_hash(scene(3)) and not is_blank(pixels)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_distances_are_counts_of_differing_bits(one: int, other: int) -> None:
    assert distance(one, other) == ((one ^ other) % 2**64).bit_count()


@pytest.mark.parametrize(("amplitude", "expected"), [(0, True), (2, True), (3, False), (90, False)])
def test_a_picture_is_blank_where_no_channel_varies(amplitude: int, expected: bool) -> None:
    pixels = np.full((64, 64, 3), 100, np.uint8)
    pixels[:, ::2, 1] += np.uint8(amplitude)
    pixels[:, 1::2, 1] -= np.uint8(amplitude)
    assert is_blank(pixels) == expected == (amplitude < BLANK_SPREAD)
