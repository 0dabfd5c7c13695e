"""All pairs of 64-bit hashes within a few bits of each other, among millions, in bounded memory.

Cut into 4 bands of 16 bits, two hashes that differ in at most 4 r + 3 bits differ in at most r bits in one of the bands
(M. Norouzi, A. Punjani, D. Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012). So each band is
sorted once, and only hashes whose bands are within r bits are compared in full. That finds every such pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.perceptual_hash import HASH_BITS, MIRROR_BITS, hash_distance

_BANDS = 4
_BAND_BITS = HASH_BITS // _BANDS
_BUCKETS = 1 << _BAND_BITS

MAX_DISTANCE = 11
"""Beyond, there are 697 neighbours of a band to look at, and unrelated pictures begin to be as close."""

MAX_BUCKET = 16_384
"""Hashes that share a band are compared each with each: more than this many would take minutes. They are left to the
other three bands, and counted."""

_CHUNK_PAIRS = 1 << 22
"""Pairs compared at a time: some 200 MB of temporary arrays."""


@dataclass(frozen=True, eq=False)
class HashPairs:
    """Pairs of hashes, by their numbers; each pair once, sorted by (left, right, mirrored).

    Attributes:
        left: (n,) int64.
        right: (n,) int64, greater than `left`.
        distance: (n,) int64, differing bits; of a mirrored pair, after mirroring one of them.
        mirrored: (n,) bool.
        crowded: largest number of hashes that any band left out because they share it with too many others; where it is
            0, the pairs are all there are.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    distance: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    crowded: int


def near_hashes(
    hashes: NDArray[np.int64], distance: int, *, mirrored: bool = False, max_bucket: int = MAX_BUCKET
) -> HashPairs:
    """Find all pairs that differ in at most `distance` bits.

    Args:
        hashes: (n,) int64, all different: those of equal hashes are known without a search.
        distance: 0 to `MAX_DISTANCE`.
        mirrored: also compare each hash with the mirrored one of each other.
        max_bucket: hashes that may share a band before they are left to the other bands.
    """
    assert 0 <= distance <= MAX_DISTANCE
    found: list[NDArray[np.int64]] = []
    crowded = 0
    for band in range(_BANDS):
        index = _Band(hashes, band, max_bucket)
        crowded = max(crowded, index.num_crowded)
        for flip in (0, MIRROR_BITS) if mirrored else (0,):
            for left, right in index.candidates(flip, distance // _BANDS):
                bits = hash_distance(hashes[left], hashes[right] ^ flip)
                near = bits <= distance
                ends = np.sort(np.stack([left[near], right[near]]), axis=0)
                found.append(np.stack([*ends, np.full(near.sum(), flip != 0), bits[near].astype(np.int64)]))
    rows = np.unique(np.concatenate(found, axis=1), axis=1) if found else np.empty((4, 0), np.int64)
    return HashPairs(rows[0], rows[1], rows[3], rows[2].astype(np.bool_), crowded)


class _Band:
    """Hashes sorted by 16 of their bits."""

    def __init__(self, hashes: NDArray[np.int64], band: int, max_bucket: int) -> None:
        self._shift = band * _BAND_BITS
        codes = hashes >> self._shift & (_BUCKETS - 1)
        self._order = np.argsort(codes, kind="stable")
        sizes = np.bincount(codes, minlength=_BUCKETS)
        self.num_crowded = int(sizes[sizes > max_bucket].sum())
        self._codes = codes[self._order]
        self._starts = np.cumsum(sizes) - sizes
        # A crowded bucket looks empty from outside, and its own members look nowhere.
        self._stops = self._starts + np.where(sizes > max_bucket, 0, sizes)
        self._is_open = (sizes <= max_bucket)[self._codes]

    def candidates(self, flip: int, radius: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs whose bands are within `radius` bits of each other once one of them is flipped, in chunks."""
        flip_band = flip >> self._shift & (_BUCKETS - 1)
        places = np.arange(len(self._codes))
        for count in range(radius + 1):
            for bits in combinations(range(_BAND_BITS), count):
                partner = self._codes ^ (flip_band ^ sum(1 << bit for bit in bits))
                # Each pair from one side only: from the lower code, or where codes are equal from the earlier place.
                starts = np.where(partner == self._codes, places + 1, self._starts[partner])
                counts = np.where(self._is_open & (partner >= self._codes), self._stops[partner] - starts, 0)
                yield from self._expand(starts, counts)

    def _expand(
        self, starts: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Hash p of the sorted ones with its partners starts[p] to starts[p] + counts[p] - 1."""
        active = np.flatnonzero(counts > 0)
        ends = np.cumsum(counts[active])
        first = 0
        while first < len(active):
            before = ends[first - 1] if first else 0
            past = max(first + 1, int(np.searchsorted(ends, before + _CHUNK_PAIRS, side="right")))
            some = active[first:past]
            repeats = counts[some]
            within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            yield np.repeat(self._order[some], repeats), self._order[np.repeat(starts[some], repeats) + within]
            first = past
