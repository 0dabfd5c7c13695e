"""The last step before a GPU, as far as a CPU can show it; test_gpu.py has the rest."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.transfer import DeviceTransfer, HeldMemory

CPU = torch.device("cpu")


class FakeEvent:
    """Passed when the test says so."""

    def __init__(self, device: torch.device) -> None:
        self.passed, self.waited = False, False
        EVENTS.append(self)

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.waited = True


EVENTS: list[FakeEvent] = []


class Memory:
    """Something that can be seen to go away."""


@pytest.fixture
def held() -> HeldMemory:
    EVENTS.clear()
    return HeldMemory(CPU, FakeEvent)


def test_memory_is_kept_until_the_device_has_passed_its_event(held: HeldMemory) -> None:
    memory = [Memory() for _ in range(3)]
    alive = [weakref.ref(one) for one in memory]
    while memory:
        held.hold(memory.pop(0))
    EVENTS[0].passed = True
    held.let_go()
    gc.collect()
    assert [reference() is not None for reference in alive] == [False, True, True]
    assert not any(event.waited for event in EVENTS), "nobody waited"
    EVENTS[2].passed = True
    held.let_go()
    assert len(held) == 2, "in the order of the stream"
    EVENTS[1].passed = True
    held.let_go()
    assert len(held) == 0


def test_closing_waits_for_what_is_left_and_for_what_still_comes(held: HeldMemory) -> None:
    held.hold(Memory())
    held.close()
    assert EVENTS[0].waited and len(held) == 0
    held.hold(Memory())
    assert EVENTS[1].waited and len(held) == 0


def test_memory_is_still_there_while_its_event_is_waited_for(held: HeldMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(FakeEvent, "synchronize", lambda event: seen.append(alive() is not None))
    memory = Memory()
    alive = weakref.ref(memory)
    held.hold(memory)
    del memory
    held.close()
    assert seen == [True] and alive() is None


def test_memory_that_comes_while_another_thread_closes_is_not_left_behind(held: HeldMemory) -> None:
    class Interrupted(deque[Any]):
        """Where the other thread closes: after this one has looked whether it is closed, before it adds its memory."""

        def append(self, item: Any) -> None:
            held.close()
            super().append(item)

    held._held = Interrupted()
    held.hold(Memory())
    assert EVENTS[0].waited and len(held) == 0


class FakeStream:
    """Notes what it waits for; also the context that makes it the current one."""

    def __init__(self, device: object = None) -> None:
        self.waits_for: list[object] = []

    def wait_event(self, event: object) -> None:
        self.waits_for.append(event)


class FakeCudaEvent(FakeEvent):
    def __init__(self) -> None:
        super().__init__(CPU)
        self.stream: object = None

    def record(self, stream: object) -> None:
        self.stream = stream


def test_a_batch_is_sent_on_a_stream_that_the_consumers_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls, with fakes in place of a GPU; test_gpu.py shows that they do what they should."""
    EVENTS.clear()
    consumer, current = FakeStream(), list[FakeStream]()
    used_on: list[object] = []

    @contextmanager
    def entered(stream: FakeStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeCudaEvent)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1] if current else consumer)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: used_on.append(stream))
    random = np.random.default_rng(3)
    params = AugmentParams(np.array([[0, 0], [2, 1], [5, 5]]), np.zeros(3, np.bool_), np.ones((3, 3), np.float32))
    mean, vectors = random.uniform(90, 160, (12, 12, 3)), random.normal(0, 9, (3, 3))
    arithmetic = PixelTransform(mean.astype(np.float32), np.ones(3, np.float32), vectors.astype(np.float32))
    plan = BatchPlan(np.arange(3), params, arithmetic.shifts(params), arithmetic.scale)
    transfer = DeviceTransfer(arithmetic, OutputSpec(3, 1, 7, "float32", "NCHW", CPU))
    pixels = random.integers(0, 256, (3, 12, 12, 3), np.uint8)

    def cut() -> torch.Tensor:
        return torch.from_numpy(
            np.stack([one[y : y + 7, x : x + 7] for one, (y, x) in zip(pixels, params.crop_yx, strict=True)])
        )

    patches = cut()
    alive = weakref.ref(patches)
    images, labels = transfer.send(patches, np.arange(3), plan)
    expected = torch.from_numpy(apply_params(pixels, params, arithmetic, 7)).permute(0, 3, 1, 2)
    assert torch.equal(images, expected) and labels.tolist() == [0, 1, 2]
    (ready,) = EVENTS
    assert consumer.waits_for == [ready] and used_on == [consumer, consumer]
    assert ready.stream is not consumer  # type: ignore[attr-defined]
    del patches
    assert alive() is not None, "the copy may still read it"
    ready.passed = True
    transfer.send(cut(), np.arange(3), plan)
    assert alive() is None
    assert not any(event.waited for event in EVENTS), "the host waited for nothing"
    transfer.close()


def test_a_storage_says_when_the_last_tensor_on_it_is_gone() -> None:
    """What `DaliBackend` relies on to know when a consumer is done with DALI's memory."""
    gone: list[int] = []
    tensor = torch.utils.dlpack.from_dlpack(np.ones((4, 3), np.float32))
    weakref.finalize(tensor.untyped_storage(), gone.append, 1)
    view = tensor.t()[1:]
    del tensor
    gc.collect()
    loss = (view * torch.ones(2, 4, requires_grad=True)).sum()
    del view
    gc.collect()
    assert gone == [], "a graph that is to be run backwards still needs it"
    loss.backward()  # type: ignore[no-untyped-call]
    del loss
    gc.collect()
    assert gone == [1]
