"""Decoded pixels of as many samples as fit into a given number of bytes, from the first epoch on.

Which samples those are is decided by who comes first; in a shuffled order that is a random part of the dataset, and
what it costs per epoch does not depend on it. Nothing is ever evicted: a sample that is asked for once per epoch gives
no cache a better rule than to keep what it has.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

_NONE = -1


class DecodedCache:
    """A fixed number of places for whole images.

    Args:
        capacity_bytes: at most this much memory for pixels; it is taken as it is filled.
        image_size: side of the images, pixels.
        num_records: of the dataset; each costs 5 bytes of bookkeeping.

    Attributes:
        pixels: (places, image_size, image_size, 3) uint8.
        labels: (places,) int64, so that nothing of a kept sample's record need be read again.
        image_bytes: bytes of one image.
    """

    def __init__(self, capacity_bytes: int, image_size: int, num_records: int) -> None:
        self.image_bytes = 3 * image_size * image_size
        places = min(capacity_bytes // self.image_bytes, num_records)
        self.pixels = np.empty((places, image_size, image_size, 3), np.uint8)
        self.labels = np.empty(places, np.int64)
        self._place_of = np.full(num_records, _NONE, np.int32)
        self._is_whole = np.zeros(num_records, np.bool_)
        self._used = 0
        self._lock = threading.Lock()

    def find(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of (n,) samples, int64; -1 where a sample is not there (yet)."""
        return np.where(self._is_whole[indices], self._place_of[indices], _NONE).astype(np.int64)

    def reserve(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places to decode (n,) samples into, int64; -1 where there is no room, or somebody else is at it."""
        places = np.full(len(indices), _NONE, np.int64)
        if self._used < len(self.pixels):
            with self._lock:
                free = np.flatnonzero(self._place_of[indices] == _NONE)[: len(self.pixels) - self._used]
                # A sample that comes twice in one call gets one place.
                free = free[np.sort(np.unique(indices[free], return_index=True)[1])]
                places[free] = self._used + np.arange(len(free))
                self._place_of[indices[free]] = places[free]
                self._used += len(free)
        return places

    def holds(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of (n,) samples are there."""
        return self._is_whole[indices]

    def publish(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """The pixels of these samples are whole now."""
        self.labels[self._place_of[indices]] = labels
        self._is_whole[indices] = True

    def give_back(self, indices: NDArray[np.int64]) -> None:
        """Those of these samples that are not whole could not be decoded; their places stay empty."""
        self._place_of[indices[~self._is_whole[indices]]] = _NONE
