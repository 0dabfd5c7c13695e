"""The inverse DCT in vectors gives what the loops give, whatever the coefficients are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline.idct_kernel import transform_group, transform_group_in_loops, transform_group_in_vectors
from lmdali.pipeline.idct_vectors import LANES
from lmdali.pipeline.vectors import HAS_PAIR_SUMS

GROUP, STRIDE = 64 * LANES, LANES + 3
UNTOUCHED = 0x0123456789ABCDEF


def transformed(transform: object, coefficients: NDArray[np.int16], quant: NDArray[np.int16]) -> tuple[bytes, bool]:
    """The plane, of which the group is a part, and whether a coefficient was out of range."""
    assert callable(transform)
    words = np.full(5 + 8 * STRIDE, UNTOUCHED, np.uint64)
    wild = transform(coefficients, quant, np.empty(GROUP, np.int16), np.empty(2 * LANES, np.uint32), words, 5, STRIDE)
    outside = np.concatenate([words[:5], words[5:].reshape(8, STRIDE)[:, LANES:].ravel()])
    assert (outside == UNTOUCHED).all()
    return words.tobytes(), wild != 0


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 9, 80, 700, 5000, 32768]), st.sampled_from([1, 12, 255]), st.data()
)
@settings(max_examples=300)
def test_vectors_and_loops_agree(seed: int, largest: int, steps: int, data: st.DataObject) -> None:
    if not HAS_PAIR_SUMS:
        pytest.skip("this processor has no AVX2")
    random = np.random.default_rng(seed)
    share = data.draw(st.sampled_from([0.02, 0.3, 1.0]))
    coefficients = (random.integers(-largest, largest, GROUP) * (random.random(GROUP) < share)).astype(np.int16)
    quant = random.integers(1, steps + 1, 64).astype(np.int16)
    in_loops = transformed(transform_group_in_loops, coefficients, quant)
    assert transformed(transform_group_in_vectors, coefficients, quant) == in_loops


def test_a_processor_with_the_instructions_uses_them() -> None:
    assert transform_group is (transform_group_in_vectors if HAS_PAIR_SUMS else transform_group_in_loops)


@pytest.mark.parametrize("transform", [transform_group_in_loops, transform_group_in_vectors])
def test_a_flat_block_and_a_number_out_of_range(transform: object) -> None:
    if transform is transform_group_in_vectors and not HAS_PAIR_SUMS:
        pytest.skip("this processor has no AVX2")
    quant = np.full(64, 2, np.int16)
    coefficients = np.zeros((64, LANES), np.int16)
    coefficients[0] = np.arange(LANES) * 4  # a DC of 8 is one gray level
    plane, wild = transformed(transform, coefficients.reshape(-1), quant)
    rows = np.frombuffer(plane, np.uint8)[40:].reshape(8, -1)[:, : 8 * LANES]
    assert not wild and (rows == 128 + np.repeat(np.arange(LANES), 8)).all()
    for place, value, is_wild in (
        (0, 4095, False),
        (0, 4096, True),
        (0, -4096, False),
        (0, -4097, True),
        (8, 9999, False),
    ):
        coefficients[:] = 0
        coefficients[place, 7] = value
        assert transformed(transform, coefficients.reshape(-1), quant)[1] is is_wild, value
