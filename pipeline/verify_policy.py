"""Which records have their CRC compared when they are read."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verify = Literal["first", "always", "never"]


class CrcPolicy:
    """`first`: the first time this process reads a record; `always`; `never`.

    Args:
        verify: the policy.
        num_records: records in the dataset; `first` keeps one byte for each.
    """

    def __init__(self, verify: Verify, num_records: int) -> None:
        self._always = verify == "always"
        self._seen = np.zeros(num_records, np.bool_) if verify == "first" else None

    def wanted(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in `indices` whose checksum this read compares; two threads may both be told yes: harmless."""
        if self._seen is not None:
            return np.flatnonzero(~self._seen[indices])
        return np.arange(len(indices) if self._always else 0)

    def passed(self, indices: NDArray[np.int64]) -> None:
        """Note that checksums were right. Not before: a damaged record must not pass when it is asked for again."""
        if self._seen is not None:
            self._seen[indices] = True
