"""Which records have their CRC compared when they are read."""

from __future__ import annotations

from typing import Literal

import numpy as np

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

    def wanted(self, index: int) -> bool:
        """Whether this read compares the checksum; a second thread may be told yes as well, which is harmless."""
        return self._always if self._seen is None else not self._seen[index]

    def passed(self, index: int) -> None:
        """Note that the checksum was right. Not before: a damaged record must not pass when it is asked for again."""
        if self._seen is not None:
            self._seen[index] = True
