from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmdali.model.hamming import hamming_distances, pack_codes, search_hamming
from lmdali.pipeline.errors import ConfigError, InputError

_CODES = st.tuples(st.integers(1, 60), st.sampled_from([1, 7, 28, 63, 64, 65, 256])).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


def test_bit_j_is_bit_j_of_its_word() -> None:
    bits = np.zeros((2, 70), np.bool_)
    bits[0, [0, 5, 63, 64]] = True
    assert pack_codes(bits).tolist() == [[(1 << 0) | (1 << 5) | (1 << 63), 0], [1, 0]]


@given(_CODES)
def test_packing_loses_nothing(bits: Any) -> None:
    places = np.arange(bits.shape[1], dtype=np.uint64)
    assert (pack_codes(bits)[places // 64].T >> places % 64 & 1 == bits).all()


@given(_CODES, st.integers(0, 59), st.integers(1, 12))
def test_search_equals_counting_bits_one_by_one(bits: Any, query: int, k: int) -> None:
    query %= len(bits)
    words = pack_codes(bits)
    naive = (bits != bits[query]).sum(axis=1)
    assert (hamming_distances(words, words[:, query]) == naive).all()
    found = search_hamming(words, words[:, [query]], k)
    order = np.argsort(naive, kind="stable")[:k]
    assert (found.indices[0] == order).all()
    assert (found.distances[0] == naive[order]).all()


def test_codes_in_several_blocks() -> None:
    bits = np.random.default_rng(0).random((40_000, 28)) < 0.5
    words = pack_codes(bits)
    naive = (bits != bits[39_999]).sum(axis=1)
    found = search_hamming(words, words[:, [39_999]], 50)
    assert (found.indices[0] == np.argsort(naive, kind="stable")[:50]).all()


def test_codes_that_differ_in_every_bit() -> None:
    words = pack_codes(np.array([[True] * 1024, [False] * 1024]))
    assert search_hamming(words, words[:, :1], 2).distances.tolist() == [[0, 1024]]


def test_bad_searches_are_refused() -> None:
    words = pack_codes(np.ones((3, 65), np.bool_))
    with pytest.raises(ConfigError, match="at least 1"):
        search_hamming(words, words[:, :1], 0)
    with pytest.raises(InputError, match="no query"):
        search_hamming(words, words[:, :0], 1)
    with pytest.raises(InputError, match="1 words for codes of 2"):
        search_hamming(words, words[:1, :1], 1)
