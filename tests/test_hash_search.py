from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline.perceptual_hash import MIRROR_BITS, hash_distance
from lmdali.tools import hash_search
from lmdali.tools.hash_search import HashPairs, near_hashes


def crowd(seed: int, count: int, most_bits: int) -> np.ndarray:
    """Different hashes, many of them near one of a few, or near its mirrored one."""
    random = np.random.default_rng(seed)
    hashes = random.integers(-(2**63), 2**63 - 1, count)
    for place in range(count // 3, count):
        hashes[place] = hashes[place % 7] ^ (MIRROR_BITS if place % 2 else 0)
        for bit in random.choice(64, random.integers(0, most_bits + 1), replace=False):
            hashes[place] ^= np.uint64(1 << int(bit)).astype(np.int64)
    return np.unique(hashes)


def rows(pairs: HashPairs) -> list[tuple[int, ...]]:
    columns = (pairs.left, pairs.right, pairs.distance, pairs.mirrored)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def by_force(hashes: np.ndarray, distance: int, mirrored: bool) -> list[tuple[int, ...]]:
    found = []
    left, right = np.triu_indices(len(hashes), 1)
    for flip in (0, MIRROR_BITS) if mirrored else (0,):
        bits = hash_distance(hashes[left], hashes[right] ^ flip)
        near = bits <= distance
        found += list(zip(left[near], right[near], bits[near], [bool(flip)] * near.sum(), strict=True))
    return sorted(tuple(map(int, row)) for row in found)


@given(st.integers(0, 10**6), st.integers(0, 11), st.booleans())
@settings(max_examples=25)
def test_all_pairs_within_the_distance_are_found_and_no_other(seed: int, distance: int, mirrored: bool) -> None:
    hashes = crowd(seed, 150, distance + 2)
    found = near_hashes(hashes, distance, mirrored=mirrored)
    assert rows(found) == by_force(hashes, distance, mirrored) and found.crowded == 0
    assert (found.left < found.right).all()


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = crowd(1, 200, 5)
    whole = rows(near_hashes(hashes, 5, mirrored=True))
    monkeypatch.setattr(hash_search, "_CHUNK_PAIRS", 3)
    assert whole == rows(near_hashes(hashes, 5, mirrored=True)) and len(whole) > 100


def test_hashes_that_share_a_band_with_too_many_are_left_to_the_others_and_counted() -> None:
    # The lowest 16 bits are alike in all of them; the pair that differs only above is found by another band.
    hashes = np.arange(1, 101, dtype=np.int64) * 0x0123_4567_89AB << 16
    hashes = np.unique(np.append(hashes, hashes[0] ^ 1 << 60))
    everything = near_hashes(hashes, 3)
    bounded = near_hashes(hashes, 3, max_bucket=50)
    assert everything.crowded == 0 and bounded.crowded == 101
    assert (1 in bounded.distance) and set(rows(bounded)) <= set(rows(everything))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_hashes_have_no_pairs(count: int) -> None:
    assert rows(near_hashes(np.zeros(count, np.int64), 11, mirrored=True)) == []
