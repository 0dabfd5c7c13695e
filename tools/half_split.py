"""Half of each class for training and the other half for testing, as the paper split the Fall 2009 release.

Which half an image belongs to follows from its name and those of its class alone: the names of a class are put into the
order of their hashes, and the first half of that order is the one half. So the halves share nothing, leave nothing out,
differ by one image at most, and are the same in whatever order the files are found.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.source_entries import Scan

Half = Literal["first", "second"]
HALVES: tuple[Half, ...] = get_args(Half)


def take_half(scan: Scan, half: Half) -> Scan:
    """One half of the entries of each class; of an odd number the first half has one more.

    Args:
        scan: of the whole source.
        half: "first" or "second".

    Raises:
        ConfigError: no such half.
    """
    if half not in HALVES:
        raise ConfigError(f"split_half is {half!r}: choose among {', '.join(HALVES)}")
    labels = scan.entries.labels()
    hashes = np.array([_name_hash(entry.path) for entry in scan.entries], "S32")
    order = np.lexsort((hashes, labels))
    class_sizes = np.bincount(labels, minlength=len(scan.class_names))
    class_begins = np.cumsum(class_sizes) - class_sizes
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - class_begins[labels[order]]
    in_first = rank < (class_sizes[labels] + 1) // 2
    chosen = np.flatnonzero(in_first if half == "first" else ~in_first)
    detail = f"{half} half of each class" + (f", {scan.detail}" if scan.detail else "")
    return replace(scan, entries=scan.entries.take(chosen), blocks=_kept(scan.blocks, chosen), detail=detail)


def _name_hash(path: str) -> bytes:
    # Of the hexadecimal digits: a NumPy string ends at its first zero byte.
    return hashlib.sha256(os.fsencode(path)).hexdigest().encode()[:32]


def _kept(blocks: tuple[int, ...] | None, chosen: NDArray[np.int64]) -> tuple[int, ...] | None:
    """Sizes of the blocks with only the chosen entries left in them."""
    if blocks is None:
        return None
    block_of = np.searchsorted(np.cumsum(blocks), chosen, side="right")
    return tuple(np.bincount(block_of, minlength=len(blocks)).tolist())
