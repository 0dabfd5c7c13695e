"""float32 to 16-bit floats and back, in the thread that has them.

torch converts as well, but its copy starts a team of threads per call, which a pool of threads that each convert their
own images does not want; NumPy has no bfloat16 and takes eight times as long for float16. Rounding is to the nearest,
ties to even (IEEE 754), as torch does it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled
from lmdali.pipeline.word_access import single


@compiled
def from_float16(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """The bits of (n, m) float16 to (n, m) float32; only where `word_access.HAS_HALVES`."""
    for i in range(len(bits)):
        halves, singles = bits[i], out[i]
        for j in range(len(halves)):
            singles[j] = single(halves[j])


@compiled
def to_bfloat16(bits: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """Finite float32 values, given as their bits, to the bits of bfloat16; both (n,)."""
    for i in range(len(bits)):
        word = bits[i]
        out[i] = np.uint16((word + np.uint32(0x7FFF) + (word >> np.uint32(16) & np.uint32(1))) >> np.uint32(16))


@compiled
def to_float16(values: NDArray[np.float32], bits: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """Finite (n,) float32 `values`, whose bits are `bits`, to the bits of IEEE halves; too large ones become inf."""
    for i in range(len(values)):
        word = bits[i] & np.uint32(0x7FFFFFFF)
        sign = (bits[i] ^ word) >> np.uint32(16)
        # Normal numbers: exponent from bias 127 to 15, and 13 bits of fraction less. Overflow is cut off at infinity.
        odd = word >> np.uint32(13) & np.uint32(1)
        normal = min((word - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13), np.uint32(0x7C00))
        # Below 2**-14 halves are multiples of 2**-24.
        small = np.uint32(np.rint(min(abs(values[i]), np.float32(2.0**-14)) * np.float32(2.0**24)))
        out[i] = np.uint16(sign | (small if word < np.uint32(0x38800000) else normal))
