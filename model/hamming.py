"""Codes as 64-bit words, and the nearest of them by Hamming distance: exclusive or and population count.

Words of all records lie together, first words first: `(words, N)` uint64, bit j of a code being bit j % 64 of word
j // 64. So a pass over N codes reads memory in order and does nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.model.exact_search import Neighbours, check_queries
from lmdali.pipeline.errors import InputError

WORD_BITS = 64
_BLOCK_RECORDS = 16_384
"""128 kB of words: they and what is computed of them stay in a core's own cache."""


def pack_codes(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """`(words, N)` uint64 of `(N, bits)` bool."""
    count, length = bits.shape
    words = -(-length // WORD_BITS)
    padded = np.zeros((count, words * WORD_BITS), np.bool_)
    padded[:, :length] = bits
    packed = np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return np.ascontiguousarray(packed.T)


def hamming_distances(words: NDArray[np.uint64], query: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """`(N,)` uint16: bits in which each of `(words, N)` codes differs from a `(words,)` query."""
    # A population count is a uint8; the sum over words needs more.
    total: NDArray[np.uint16] = np.bitwise_count(words[0] ^ query[0]).astype(np.uint16)
    for row, word in zip(words[1:], query[1:], strict=True):
        total += np.bitwise_count(row ^ word)
    return total


def search_hamming(words: NDArray[np.uint64], queries: NDArray[np.uint64], k: int) -> Neighbours:
    """The k codes nearest to each query, equal distances by record number.

    Args:
        words: `(words, N)` uint64.
        queries: `(words, Q)` uint64.
        k: codes wanted; fewer come back where there are fewer.

    Raises:
        ConfigError: k is below 1.
        InputError: no query, or queries of another length.
    """
    check_queries(queries.T, k)
    if len(queries) != len(words):
        raise InputError(f"queries of {len(queries)} words for codes of {len(words)}: both must be of one encoder")
    found = [_nearest(words, query, k) for query in queries.T]
    return Neighbours(np.stack([indices for indices, _ in found]), np.stack([distances for _, distances in found]))


def _nearest(words: NDArray[np.uint64], query: NDArray[np.uint64], k: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    indices, distances = np.empty(0, np.int64), np.empty(0, np.int64)
    limit = WORD_BITS * len(words) + 1
    for start in range(0, words.shape[1], _BLOCK_RECORDS):
        block = hamming_distances(words[:, start : start + _BLOCK_RECORDS], query)
        # One comparison leaves next to nothing: whoever comes later and is no nearer than the last has lost.
        nearer = np.flatnonzero(block < limit)
        if len(nearer) > 2 * k:  # sorting all of them would cost as much as a million comparisons
            nearer = nearer[block[nearer] <= np.partition(block[nearer], k - 1)[k - 1]]
        if len(nearer):
            distances = np.concatenate([distances, block[nearer].astype(np.int64)])
            indices = np.concatenate([indices, start + nearer])
            order = np.lexsort((indices, distances))[:k]
            indices, distances = indices[order], distances[order]
            if len(order) == k:
                limit = int(distances[-1])
    return indices, distances
