"""Random numbers as a function of a counter: no state, no stream, the same on every machine and for ever.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a key and a counter into
four random words. NumPy has a Philox too, but it walks one stream; here every sample has a counter of its own, so the
draws of a whole batch are one vectorised call whatever the order of the samples, and NumPy's freedom to change its
streams between versions (NEP 19) cannot change anybody's augmentation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""The odd number next to 2**64 over the golden ratio: its multiples are far apart."""

Words = NDArray[np.uint64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: int) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 of every counter under one 64-bit key.

    Args:
        counter: four broadcastable uint64 arrays that hold 32-bit words.
        key: 64 bits; the low word is the generator's first key word.

    Returns:
        Four uint64 arrays of 32-bit random words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _32) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def sample_words(seed: int, epoch: int, samples: NDArray[np.int64], stream: int) -> tuple[Words, Words, Words, Words]:
    """Four random words for each sample of an epoch.

    Args:
        seed: the run's seed, 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        samples: (n,) record numbers below 2**48.
        stream: keeps draws for different uses apart, 0 to 2**16 - 1.
    """
    index = samples.astype(np.uint64)
    high = (index >> _32) | np.uint64(stream << 16)
    return philox4x32((index & _LOW, high, np.full_like(index, epoch), np.zeros_like(index)), seed)


def sample_normals(seed: int, epoch: int, samples: NDArray[np.int64], streams: tuple[int, int]) -> NDArray[np.float64]:
    """(n, 3) standard normal numbers by Box and Muller's transform (1958); arguments as `sample_words`."""
    a0, a1, a2, a3 = sample_words(seed, epoch, samples, streams[0])
    b0, b1, b2, b3 = sample_words(seed, epoch, samples, streams[1])
    # 64-bit uniforms in (0, 1]: the logarithm never sees zero.
    radius = [np.sqrt(-2.0 * np.log(((hi << _32 | lo) + 0.5) * 2.0**-64)) for hi, lo in ((a0, a1), (b0, b1))]
    angle = [2.0 * np.pi * ((hi << _32 | lo) * 2.0**-64) for hi, lo in ((a2, a3), (b2, b3))]
    normals = [radius[0] * np.cos(angle[0]), radius[0] * np.sin(angle[0]), radius[1] * np.cos(angle[1])]
    return np.stack(normals, axis=1)


def mix64(words: Words) -> Words:
    """A bijection of 64-bit words that spreads every bit (the finaliser of SplitMix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
