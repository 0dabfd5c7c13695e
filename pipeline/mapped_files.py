"""Many files mapped side by side: a whole dataset as one array of bytes.

One array, because a compiled loop can then go to any record by an offset; and one reservation of addresses, because a
mapping outlives the descriptor it was made from, so a thousand shards need no open file. Python's `mmap` keeps a
descriptor per mapping (until 3.13) and cannot place one, so the calls go to the C library.

Memory is given back when the last view of it is gone, whoever holds it: closing early cannot pull the ground from
under a thread. As with any mapping, a file that is cut short while it is mapped ends the process with SIGBUS.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_ssize_t,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if os.uname().sysname == "Linux" else 0
_FAILED = ctypes.c_void_p(-1).value
_ADVICE_BYTES = 131_072
"""Linux reads no more than this for one advice where the device has its default read_ahead_kb and takes no larger
requests; the rest of a longer advice would be dropped without a word."""


class MappedFiles:
    """An array in which each of a number of files has its place, mapped when it is first needed.

    Args:
        sizes: size of each file, bytes.

    Attributes:
        bytes: (total,) uint8, read-only. Touching the place of a file that is not mapped is a segmentation fault.
        starts: (len(sizes),) int64, first byte of each file's place.

    Raises:
        OSError: there is not that much address space.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        page = mmap.ALLOCATIONGRANULARITY
        places = np.array([-(-size // page) * page for size in sizes], np.int64)
        self._sizes = tuple(sizes)
        self.starts = np.concatenate([[0], np.cumsum(places)[:-1]]).astype(np.int64) if len(places) else places
        total = max(int(places.sum()), page)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._address = _checked(_libc.mmap(None, total, _PROT_NONE, flags, -1, 0))
        buffer = (ctypes.c_uint8 * total).from_address(self._address)
        weakref.finalize(buffer, _libc.munmap, self._address, total).atexit = False
        self.bytes: NDArray[np.uint8] = np.frombuffer(memoryview(buffer), np.uint8)
        self.bytes.flags.writeable = False

    def map(self, number: int, descriptor: int) -> None:
        """Put the first `sizes[number]` bytes of an open file in its place; the descriptor may be closed afterwards.

        The kernel is told that access is random: it must not read ahead what nobody will ask for.

        Raises:
            OSError: the file cannot be mapped.
        """
        size = self._sizes[number]
        if not size:
            return
        place = self._address + int(self.starts[number])
        _checked(_libc.mmap(place, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0))
        _libc.madvise(place, size, mmap.MADV_RANDOM)

    def unmap(self, number: int) -> None:
        """Give a file's place back to nobody. Whoever still reads there gets a segmentation fault: ask them first."""
        if self._sizes[number]:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
            place = self._address + int(self.starts[number])
            _checked(_libc.mmap(place, self._sizes[number], _PROT_NONE, flags, -1, 0))

    def will_need(self, start: int, stop: int) -> None:
        """Ask the kernel to begin reading bytes start..stop-1 of the array; returns before they are there."""
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        for piece in range(first, stop, _ADVICE_BYTES):
            size = min(stop - piece, _ADVICE_BYTES)
            _libc.madvise(self._address + piece, size, mmap.MADV_WILLNEED)


def _checked(address: int | None) -> int:
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address
