"""Squared distances of many rows from a few queries, by differences, as fast as the rows can be read.

Differences first, so that nothing cancels: the error is relative to the distance itself, however far from the origin
the rows lie. `|a|^2 - 2ab + |b|^2` by a matrix product is off by a part of the norms instead, and took longer on the
AMD EPYC of docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.model.features_file import as_float32
from lmdali.pipeline.crop_kernel import reordered
from lmdali.pipeline.word_access import HAS_HALVES, single

RELATIVE_ERROR = 2.0**-15
"""See `squared_distances`."""

_CHUNK = 256  # numbers that are summed in float32
_ROWS = 4  # stay in a core's own cache while all queries meet them


def squared_distances(rows: NDArray[Any], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """`(Q, n)` float64 squared Euclidean distances of `(n, D)` float16 or float32 rows from `(Q, D)` queries.

    With s the result and S the true value, u = 2^-24 the unit roundoff of float32, and D at most 2^30:

        |s - S| <= 2^-15 S + D 2^-125,    and where S is above float32's range, s is infinite or as near.

    Proof. Sums of w <= 256 squares are made in float32 and added up in float64. A term is (b - q)^2 with one rounding
    of the difference and one of the square (none if it is fused with the addition), and passes through at most w - 1
    additions, in whichever order. So it is multiplied by at most w + 2 factors between 1 - u and 1 + u, the difference
    counting twice, and off by a part of g = 258u/(1 - 258u) < 1.54e-5 (Higham, Accuracy and Stability of Numerical
    Algorithms, lemma 3.1). No term is negative, so their sum is off by the same part at most. D/256 additions in
    float64 add D 2^-61 <= 2^-31 to that part; 2^-15 is 3.05e-5, twice of what is needed. What underflows, a square or
    a sum flushed to zero, loses at most 2^-126 each time, less than 2D times. Where the processor takes inputs below
    2^-126 for zero, a difference is off by 2^-125: below 2^-24 of it if it is above 2^-101, and its square is below
    2^-200 if not.
    """
    out = np.empty((len(queries), len(rows)), np.float64)
    if rows.dtype == np.float16 and HAS_HALVES:
        _fill_squares(rows.view(np.uint16), queries, out)
    else:
        _fill_squares(rows if rows.dtype == np.float32 else as_float32(rows), queries, out)
    return out


@reordered
def _fill_squares(rows: NDArray[Any], queries: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """`squared_distances` into `out`; rows are read in order, and four queries at a time share what they read."""
    count, dims = rows.shape
    near = np.empty((_ROWS, dims), np.float32)
    out[:] = 0.0
    for top in range(0, count, _ROWS):
        height = min(_ROWS, count - top)
        for r in range(height):
            stored, converted = rows[top + r], near[r]
            for j in range(dims):
                converted[j] = single(stored[j])
        for left in range(0, dims, _CHUNK):
            right = min(left + _CHUNK, dims)
            q = 0
            while q + 4 <= len(queries):
                a0, a1 = queries[q, left:right], queries[q + 1, left:right]
                a2, a3 = queries[q + 2, left:right], queries[q + 3, left:right]
                for r in range(height):
                    b = near[r, left:right]
                    s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                    for j in range(right - left):
                        d0, d1, d2, d3 = b[j] - a0[j], b[j] - a1[j], b[j] - a2[j], b[j] - a3[j]
                        s0 += d0 * d0
                        s1 += d1 * d1
                        s2 += d2 * d2
                        s3 += d3 * d3
                    out[q, top + r] += s0
                    out[q + 1, top + r] += s1
                    out[q + 2, top + r] += s2
                    out[q + 3, top + r] += s3
                q += 4
            for last in range(q, len(queries)):
                a = queries[last, left:right]
                for r in range(height):
                    b, s = near[r, left:right], np.float32(0)
                    for j in range(right - left):
                        d = b[j] - a[j]
                        s += d * d
                    out[last, top + r] += s
