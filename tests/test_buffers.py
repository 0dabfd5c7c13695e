from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from lmdali.pipeline.buffers import MAX_SPARE_BUFFERS, BufferRing
from lmdali.pipeline.errors import MachineError


@pytest.fixture
def ring() -> BufferRing:
    return BufferRing((4, 2, 3), np.uint8)


def test_tensor_and_array_are_the_same_memory(ring: BufferRing) -> None:
    array, tensor = ring.take(3)
    array[:] = 7
    assert tensor.shape == (3, 2, 3) and tensor.dtype == torch.uint8
    assert bool((tensor == 7).all())


def test_a_dropped_buffer_is_used_again(ring: BufferRing) -> None:
    address = None
    for count in (4, 2, 3, 4):
        array, tensor = ring.take(count)
        assert address in (None, tensor.data_ptr())
        address = tensor.data_ptr()
        del array, tensor
    assert ring.num_allocated == 1


@pytest.mark.parametrize(
    "keep",
    [
        lambda array, tensor: tensor,
        lambda array, tensor: array,
        lambda array, tensor: tensor[1:2],
        lambda array, tensor: tensor.permute(2, 0, 1),
        lambda array, tensor: tensor.numpy(),
        lambda array, tensor: tensor.numpy()[0],
        lambda array, tensor: tensor.untyped_storage(),
        lambda array, tensor: tensor.view(torch.int8),
        lambda array, tensor: tensor.detach(),
        lambda array, tensor: torch.utils.dlpack.from_dlpack(tensor),
        lambda array, tensor: memoryview(tensor.numpy()),
    ],
    ids=range(11),
)
def test_memory_that_anybody_holds_is_not_handed_out(ring: BufferRing, keep: Any) -> None:
    array, tensor = ring.take(4)
    array[:] = 9
    kept = keep(array, tensor)
    del array, tensor
    gc.collect()
    others = [ring.take(4) for _ in range(3)]
    for other, _ in others:
        other[:] = 0
    content = bytes(kept) if isinstance(kept, memoryview | torch.UntypedStorage) else np.asarray(kept).tobytes()
    assert set(content) == {9}
    assert ring.num_allocated == 4
    del kept, others, other, _
    gc.collect()
    again = [ring.take(4) for _ in range(4)]
    assert ring.num_allocated == 4 and len(again) == 4


def test_only_so_many_spare_buffers_are_kept(ring: BufferRing) -> None:
    many = [ring.take(1) for _ in range(MAX_SPARE_BUFFERS + 5)]
    allocated = ring.num_allocated
    del many
    gc.collect()
    again = [ring.take(1) for _ in range(MAX_SPARE_BUFFERS + 5)]
    assert ring.num_allocated == allocated + len(again) - MAX_SPARE_BUFFERS


def test_none_of_the_rows_is_a_batch_too(ring: BufferRing) -> None:
    _, tensor = ring.take(0)
    assert tensor.shape == (0, 2, 3)


def test_threads_that_take_and_drop_never_share_a_buffer() -> None:
    ring = BufferRing((64,), np.int64)
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(300):
            array, tensor = ring.take(64)
            array[:] = mark
            if int(tensor.sum()) != 64 * mark:
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert ring.num_allocated <= 8


def test_a_closed_ring_keeps_nothing(ring: BufferRing) -> None:
    held, (array, tensor) = ring.take(2), ring.take(2)
    first, second = weakref.ref(held[0].base), weakref.ref(array.base)
    del held
    assert first() is not None, "spare"
    ring.close()
    assert first() is None
    assert tensor.shape == (2, 2, 3), "what is held stays"
    del array, tensor
    assert second() is None


def test_a_batch_that_memory_does_not_hold_is_refused_with_its_size() -> None:
    with pytest.raises(MachineError, match=r"another batch of 1099511627776 images, \d+ bytes: lower batch_size"):
        BufferRing((2**40, 3, 224, 224), np.float32).take(1)
