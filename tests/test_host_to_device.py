"""Several arrays in one copy; test_gpu.py shows that they arrive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lmdali.pipeline.host_to_device import Uploader, pack, packed_words, torch_dtype, unpack, upload

CPU = torch.device("cpu")


def test_on_a_cpu_an_upload_is_a_view() -> None:
    array = np.arange(3)
    assert upload(array, CPU).data_ptr() == array.ctypes.data


def arrays_of_many_kinds() -> list[NDArray[np.generic]]:
    random = np.random.default_rng(0)
    return [
        np.arange(7),
        random.normal(size=(5, 3)).astype(np.float32),
        np.empty(0, np.int64),
        random.integers(0, 256, 13, np.uint8),
        np.array([2**62, -1]),
        np.asfortranarray(random.normal(size=(4, 3, 2))),
        np.array(4.5),
    ]


def require_equal(found: Sequence[torch.Tensor], arrays: Sequence[NDArray[np.generic]]) -> None:
    assert len(found) == len(arrays)
    for tensor, array in zip(found, arrays, strict=True):
        expected = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        assert tensor.dtype == expected.dtype and tensor.is_contiguous() and torch.equal(tensor, expected)


def test_arrays_come_out_of_one_buffer_as_they_went_in() -> None:
    arrays = arrays_of_many_kinds()
    packed = np.empty(packed_words(arrays), np.int64)
    pack(arrays, packed)
    found = unpack(torch.from_numpy(packed), arrays)
    require_equal(found, arrays)
    assert all((tensor.data_ptr() - found[0].data_ptr()) % 16 == 0 for tensor in found if len(tensor.shape))
    assert packed.nbytes < sum(array.nbytes + 16 for array in arrays)


def test_arrays_come_out_of_a_part_of_some_memory() -> None:
    arrays = arrays_of_many_kinds()
    memory = np.zeros(4 + packed_words(arrays), np.int64)
    pack(arrays, memory[4:])
    require_equal(unpack(torch.from_numpy(memory)[4:], arrays), arrays)


def test_an_uploader_does_not_use_memory_again_that_is_held() -> None:
    arrays = arrays_of_many_kinds()
    uploader = Uploader(CPU, packed_words(arrays) + 5)  # of a CPU, a tensor there is the memory itself
    first, held = uploader.send(arrays)
    second, _ = uploader.send(arrays[:2])
    require_equal(first, arrays)
    require_equal(second, arrays[:2])
    place = held.data_ptr()
    del first, held
    third, _ = uploader.send(arrays[1:])
    assert third[0].data_ptr() == place, "and takes what is free"
    require_equal(third, arrays[1:])


def test_dtypes_are_found_by_their_torch_name() -> None:
    assert torch_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(AttributeError):
        torch_dtype("float33")
