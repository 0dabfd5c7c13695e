"""A GPU's streams, events and memory, played on a CPU in any order that CUDA allows.

What is given to a stream is done later: in the order of its stream, after the events that the stream was told to wait
for, and otherwise whenever `SimulatedCuda.run_some` pleases. Copies read host memory when they are done, not when they
are asked for. Device memory that is freed is overwritten as soon as torch's allocator might give it away again: in the
order of the stream that it was made for, and behind what streams named by `record_stream` had been given by then.
"""

from __future__ import annotations

import ctypes
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

_GARBAGE = 0xA5


class Event:
    """Passed once its stream has come to where it was recorded."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda, self.passed = cuda, False

    def record(self, stream: Stream) -> None:
        self.passed = False
        stream.queue.append(lambda: setattr(self, "passed", True))

    def query(self) -> bool:
        self._cuda.run_some()
        return self.passed

    def synchronize(self) -> None:
        while not self.passed:
            self._cuda.run_one()


class Stream:
    """Operations still to be done; an `Event` among them is waited for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue: deque[Callable[[], object] | Event] = deque()

    def wait_event(self, event: Event) -> None:
        self.queue.append(event)


class SimulatedCuda:
    """The GPU, and what the host does with it.

    Args:
        seed: of the order in which things are done.
    """

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.consumer = Stream("consumer")
        self._streams, self._current = [self.consumer], [self.consumer]
        self._memory: dict[int, tuple[NDArray[np.uint8], Stream, set[Stream]]] = {}
        self._kept: list[Any] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of what `DeviceTransfer` calls of torch."""
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self._make_stream())
        monkeypatch.setattr(torch.cuda, "Event", lambda: Event(self))
        monkeypatch.setattr(torch.cuda, "stream", self._within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self._current[-1])
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **how: self._to(tensor, device, **how))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self._record_stream(tensor, stream))

    def run_one(self) -> bool:
        """Do one thing that can be done; False if there is none."""
        ready = [stream for stream in self._streams if stream.queue and _can_go_on(stream.queue[0])]
        if ready:
            operation = self._dice.choice(ready).queue.popleft()
            if not isinstance(operation, Event):
                operation()
        return bool(ready)

    def run_some(self) -> None:
        """Do as much as pleases: nothing, or a few things."""
        for _ in range(self._dice.choice((0, 0, 1, 3, 9))):
            self.run_one()

    def run_all(self) -> None:
        """Do all that was given to any stream."""
        while self.run_one():
            pass
        assert not any(stream.queue for stream in self._streams), "a stream waits for an event that never comes"

    def launch(self, operation: Callable[[], object]) -> None:
        """Give something to the current stream."""
        self._current[-1].queue.append(operation)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Device memory for the current stream."""
        size = torch.empty(shape, dtype=dtype, device="meta").nbytes
        memory = np.full(max(size, 1), _GARBAGE, np.uint8)
        lent = memory[:size]
        self._memory[memory.ctypes.data] = memory, self._current[-1], set()
        weakref.finalize(lent, self._free, memory.ctypes.data).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def look_at(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same memory to whoever looks later, which keeps nothing alive: as a kernel has an address."""
        memory = (ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr())
        return torch.from_numpy(np.ctypeslib.as_array(memory)).view(tensor.dtype).view(tensor.shape)

    def keep(self, memory: object) -> None:
        """Host memory that may be written again, and must be there for whoever wrongly looks at it."""
        self._kept.append(memory)

    def _make_stream(self) -> Stream:
        self._streams.append(Stream(f"side {len(self._streams)}"))
        return self._streams[-1]

    @contextmanager
    def _within(self, stream: Stream) -> Iterator[None]:
        self._current.append(stream)
        yield
        self._current.pop()

    def _to(self, tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        if not non_blocking:
            return tensor
        source, there = self.look_at(tensor), self.empty(tuple(tensor.shape), tensor.dtype)
        target = self.look_at(there)
        self.launch(lambda: target.copy_(source))
        return there

    def _record_stream(self, tensor: torch.Tensor, stream: Stream) -> None:
        self._memory[tensor.untyped_storage().data_ptr()][2].add(stream)

    def _free(self, address: int) -> None:
        memory, owner, users = self._memory.pop(address)
        self._kept.append(memory)
        for user in users:
            done = Event(self)
            done.record(user)
            owner.wait_event(done)
        owner.queue.append(lambda: memory.fill(_GARBAGE))


def _can_go_on(operation: Callable[[], object] | Event) -> bool:
    return operation.passed if isinstance(operation, Event) else True
