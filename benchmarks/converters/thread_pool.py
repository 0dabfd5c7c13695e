"""A thread pool in one process, which writes a plain LMDB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import lmdb

from converters import Job
from converters.opencv_area import picture

_AHEAD = 256


def convert(job: Job) -> None:
    """All pictures in one transaction."""
    files = iter(job.files())
    environment = lmdb.open(job.out, map_size=1 << 34)

    def make(path: Path) -> bytes:
        return picture(path.read_bytes(), job)

    number = 0
    with ThreadPoolExecutor(job.workers) as pool, environment.begin(write=True) as transaction:
        while block := list(islice(files, _AHEAD)):
            for data in pool.map(make, [path for path, _ in block]):
                transaction.put(b"%08d" % number, data, append=True)
                number += 1
    environment.close()
