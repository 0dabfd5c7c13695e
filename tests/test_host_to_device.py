"""Several arrays in one copy; test_gpu.py shows that they arrive."""

from __future__ import annotations

import numpy as np
import torch

from lmdali.pipeline.host_to_device import pack, unpack, upload

CPU = torch.device("cpu")


def test_on_a_cpu_an_upload_is_a_view() -> None:
    array = np.arange(3)
    assert upload(array, CPU).data_ptr() == array.ctypes.data


def test_arrays_come_out_of_one_buffer_as_they_went_in() -> None:
    random = np.random.default_rng(0)
    arrays = [
        np.arange(7),
        random.normal(size=(5, 3)).astype(np.float32),
        np.empty(0, np.int64),
        random.integers(0, 256, 13, np.uint8),
        np.array([2**62, -1]),
    ]
    packed, starts = pack(arrays)
    for start, array in zip(starts, arrays, strict=True):
        found = unpack(torch.from_numpy(packed), start, array)
        assert found.dtype == torch.from_numpy(array).dtype and torch.equal(found, torch.from_numpy(array))
    assert all(start % 16 == 0 for start in starts) and len(packed) < sum(array.nbytes + 16 for array in arrays)
