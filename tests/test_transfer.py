"""The last step before a GPU, as far as a CPU can show it; test_gpu.py has the rest."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.augment import AugmentParams, PixelTransform, apply_params
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.transfer import DeviceNormalizer, DeviceTransfer, HeldMemory, torch_dtype, upload

CPU = torch.device("cpu")
HEIGHT = 12


def transform(kind: str, *, scale: bool = False) -> PixelTransform:
    random = np.random.default_rng(1)
    mean = {
        "image": random.uniform(90, 160, (HEIGHT, HEIGHT, 3)),
        "window": random.uniform(90, 160, (HEIGHT, HEIGHT, 3)),
        "channel": np.broadcast_to(random.uniform(90, 160, 3), (HEIGHT, HEIGHT, 3)),
        "none": np.zeros((HEIGHT, HEIGHT, 3)),
    }[kind]
    factors = random.uniform(0.01, 1, 3) if scale else np.ones(3)
    return PixelTransform(
        np.ascontiguousarray(mean, np.float32),
        factors.astype(np.float32),
        random.normal(0, 9, (3, 3)).astype(np.float32),
        kind == "window",
    )


def cut(pixels: np.ndarray[Any, Any], params: AugmentParams, size: int) -> torch.Tensor:
    """What the threads put into the pinned buffer."""
    out = np.empty((len(params), size, size, 3), np.uint8)
    for view, (y, x) in enumerate(params.crop_yx):
        patch = pixels[view, y : y + size, x : x + size]
        out[view] = patch[:, ::-1] if params.flip[view] else patch
    return torch.from_numpy(out)


def all_draws(size: int, *, lit: bool) -> AugmentParams:
    """Every offset, mirrored and not."""
    room = HEIGHT - size + 1
    corners = np.stack(np.meshgrid(np.arange(room), np.arange(room), indexing="ij"), axis=-1).reshape(-1, 2)
    crop_yx, flip = np.concatenate([corners, corners]), np.arange(2 * len(corners)) >= len(corners)
    alphas = np.random.default_rng(2).normal(0, 0.1, (len(flip), 3)) if lit else np.zeros((len(flip), 3))
    return AugmentParams(crop_yx.astype(np.int64), flip, alphas.astype(np.float32))


@pytest.mark.parametrize("size", [1, 7, HEIGHT])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("lit", [False, True])
@pytest.mark.parametrize(
    ("kind", "scale"),
    [("image", False), ("image", True), ("window", False), ("window", True), ("channel", False), ("none", True)],
)
def test_every_patch_equals_the_reference_bit_for_bit(
    size: int, layout: Any, dtype: Any, lit: bool, kind: str, scale: bool
) -> None:
    params = all_draws(size, lit=lit)
    pixels = np.random.default_rng(3).integers(0, 256, (len(params), HEIGHT, HEIGHT, 3), np.uint8)
    arithmetic = transform(kind, scale=scale)
    spec = OutputSpec(len(params), 1, size, dtype, layout, CPU)
    plan = BatchPlan(np.arange(len(params)), params, arithmetic.shifts(params), arithmetic.scale)
    found = DeviceNormalizer(arithmetic, spec)(cut(pixels, params, size), plan)
    expected = torch.from_numpy(apply_params(pixels, params, arithmetic, size)).to(torch_dtype(dtype))
    assert torch.equal(found, expected if layout == "NHWC" else expected.permute(0, 3, 1, 2))
    assert found.is_contiguous() and found.dtype == torch_dtype(dtype)


@given(data=st.data(), size=st.integers(1, HEIGHT), planar=st.booleans())
def test_a_batch_of_any_draws_equals_the_reference(data: st.DataObject, size: int, planar: bool) -> None:
    offsets = st.integers(0, HEIGHT - size)
    draws = data.draw(st.lists(st.tuples(offsets, offsets, st.booleans()), min_size=1, max_size=6))
    crop_yx = np.array([draw[:2] for draw in draws], np.int64)
    flip = np.array([draw[2] for draw in draws])
    params = AugmentParams(crop_yx, flip, np.full((len(draws), 3), 0.1, np.float32))
    pixels = np.random.default_rng(4).integers(0, 256, (len(draws), HEIGHT, HEIGHT, 3), np.uint8)
    arithmetic = transform("image")
    plan = BatchPlan(np.arange(len(draws)), params, arithmetic.shifts(params), arithmetic.scale)
    spec = OutputSpec(len(draws), 1, size, "float32", "NCHW" if planar else "NHWC", CPU)
    found = DeviceNormalizer(arithmetic, spec)(cut(pixels, params, size), plan)
    expected = torch.from_numpy(apply_params(pixels, params, arithmetic, size))
    assert torch.equal(found.permute(0, 2, 3, 1) if planar else found, expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_pass_unchanged_and_only_their_order_is_made(layout: Any) -> None:
    params = all_draws(7, lit=False)
    patches = torch.randint(0, 256, (len(params), 7, 7, 3), dtype=torch.uint8)
    identity = PixelTransform(transform("none").mean, np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    plan = BatchPlan(np.arange(len(params)), params, identity.shifts(params), identity.scale)
    found = DeviceNormalizer(identity, OutputSpec(len(params), 1, 7, "uint8", layout, CPU))(patches, plan)
    assert torch.equal(found if layout == "NHWC" else found.permute(0, 2, 3, 1), patches)
    assert found.is_contiguous()
    assert (found is patches) == (layout == "NHWC"), "no pass where there is nothing to do"


def test_each_plan_brings_the_scale_of_its_epoch() -> None:
    params, lit = all_draws(7, lit=False), transform("window", scale=True)
    lit = replace(lit, unlit=(3, np.ones(3, np.float32)))
    pixels = np.random.default_rng(3).integers(0, 256, (len(params), HEIGHT, HEIGHT, 3), np.uint8)
    normalizer = DeviceNormalizer(lit, OutputSpec(len(params), 1, 7, "float32", "NHWC", CPU))
    for epoch in (2, 3, 2, 4):
        arithmetic = lit.at(epoch)
        plan = BatchPlan(np.arange(len(params)), params, arithmetic.shifts(params), arithmetic.scale)
        found = normalizer(cut(pixels, params, 7), plan)
        assert torch.equal(found, torch.from_numpy(apply_params(pixels, params, arithmetic, 7)))


def test_the_patches_are_not_written_to() -> None:
    params = all_draws(7, lit=True)
    patches = torch.randint(0, 256, (len(params), 7, 7, 3), dtype=torch.uint8)
    before, arithmetic = patches.clone(), transform("image", scale=True)
    plan = BatchPlan(np.arange(len(params)), params, arithmetic.shifts(params), arithmetic.scale)
    normalizer = DeviceNormalizer(arithmetic, OutputSpec(len(params), 1, 7, "float32", "NHWC", CPU))
    first, second = normalizer(patches, plan), normalizer(patches, plan)
    assert torch.equal(patches, before) and torch.equal(first, second)


def test_on_a_cpu_an_upload_is_a_view() -> None:
    array = np.arange(3)
    assert upload(array, CPU).data_ptr() == array.ctypes.data


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
    params, arithmetic = all_draws(7, lit=True), transform("image")
    plan = BatchPlan(np.arange(len(params)), params, arithmetic.shifts(params), arithmetic.scale)
    transfer = DeviceTransfer(arithmetic, OutputSpec(len(params), 1, 7, "float32", "NCHW", CPU))
    pixels = np.random.default_rng(3).integers(0, 256, (len(params), HEIGHT, HEIGHT, 3), np.uint8)
    patches = cut(pixels, params, 7)
    alive = weakref.ref(patches)
    images, labels = transfer.send(patches, np.arange(3), plan)
    expected = torch.from_numpy(apply_params(pixels, params, arithmetic, 7)).permute(0, 3, 1, 2)
    assert torch.equal(images, expected) and labels.tolist() == [0, 1, 2]
    held_by, ready = EVENTS
    assert consumer.waits_for == [ready] and used_on == [consumer, consumer]
    assert held_by.stream is ready.stream is not consumer  # type: ignore[attr-defined]
    del patches
    assert alive() is not None, "the copy may still read it"
    held_by.passed = True
    transfer.send(cut(pixels, params, 7), np.arange(3), plan)
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
