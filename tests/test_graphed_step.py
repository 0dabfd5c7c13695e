"""Which graph a step takes, and when one is captured, with fakes in place of CUDA; test_gpu.py has the real thing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from lmdali.model.graphed_step import GraphedStep


class FakeStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: object) -> None:
        pass


class FakeGraph:
    """Replays by doing nothing; every graph tells its pool."""

    def __init__(self) -> None:
        self._pool: object = None

    def pool(self) -> object:
        return self._pool

    def replay(self) -> None:
        pass


class Trace:
    """What was done: sizes of batches that ran, captured or not; pools and streams of captures; other streams."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.captured: list[int] = []
        self.pools: list[object] = []
        self.capture_streams: list[FakeStream] = []
        self.other_streams: list[FakeStream] = []
        self.devices: list[torch.device] = []
        self._capturing = False

    def work(self, images: Tensor, labels: Tensor) -> Tensor:
        (self.captured if self._capturing else self.ran).append(len(labels))
        return images.sum()

    @contextmanager
    def capture(self, graph: FakeGraph, *, pool: object, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        self.pools.append(pool)
        self.capture_streams.append(stream)
        graph._pool = pool or f"pool {len(self.pools)}"
        self._capturing = True
        yield
        self._capturing = False

    def stream(self, stream: FakeStream) -> AbstractContextManager[None]:
        self.other_streams.append(stream)
        return nullcontext()

    def device(self, device: torch.device) -> AbstractContextManager[None]:
        self.devices.append(device)
        return nullcontext()


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    trace = Trace()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", trace.capture)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", trace.stream)
    monkeypatch.setattr(torch.cuda, "device", trace.device)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return trace


def run(step: GraphedStep, sizes: list[int]) -> None:
    for size in sizes:
        step(torch.ones(size, 3), torch.ones(size))


def test_three_steps_run_and_the_fourth_is_captured(trace: Trace) -> None:
    run(GraphedStep(trace.work), [8] * 7)
    assert trace.ran == [8, 8, 8] and trace.captured == [8]


def test_all_of_it_is_on_one_stream_of_the_device_that_has_the_images(trace: Trace) -> None:
    """Another GPU may be the current one, and memory is shared by captures of one stream only."""
    elsewhere = torch.device("meta")
    step = GraphedStep(trace.work)
    for _ in range(4):
        for size in (8, 3):
            step(torch.ones(size, 3, device=elsewhere), torch.ones(size, device=elsewhere))
    (stream,) = {*trace.capture_streams, *trace.other_streams}
    assert stream.device == elsewhere and trace.devices == [elsewhere, elsewhere]
    assert len(trace.capture_streams) == 2 and len(trace.other_streams) == 6


def test_nothing_is_collected_inside_a_capture(trace: Trace) -> None:
    enabled: list[bool] = []

    def work(images: Tensor, labels: Tensor) -> Tensor:
        enabled.append(gc.isenabled())
        return trace.work(images, labels)

    run(GraphedStep(work), [8] * 5)
    assert enabled == [True, True, True, False] and gc.isenabled()


def test_a_smaller_last_batch_has_its_own_graph_in_the_same_memory(trace: Trace) -> None:
    run(GraphedStep(trace.work), [8, 8, 3] * 6)
    assert sorted(trace.ran) == [3, 3, 3, 8, 8, 8] and trace.captured == [8, 3]
    assert trace.pools == [None, "pool 1"]


def test_a_third_shape_takes_the_place_of_the_one_used_longest_ago(trace: Trace) -> None:
    step = GraphedStep(trace.work)
    run(step, [8, 3] * 4 + [8] + [5] * 4)
    assert trace.captured == [8, 3, 5]
    run(step, [8])
    assert trace.captured == [8, 3, 5] and len(trace.ran) == 9, "8 still has its graph"
    run(step, [3])
    assert trace.ran[-1] == 3 and len(trace.ran) == 10, "and 3 begins again"


def test_what_a_step_has_built_in_begins_again_when_it_changes(trace: Trace) -> None:
    frozen = [False]
    step = GraphedStep(trace.work, lambda: frozen[0])
    run(step, [8] * 5)
    frozen[0] = True
    run(step, [8] * 5)
    assert trace.captured == [8, 8] and trace.ran == [8] * 6
    assert trace.pools == [None, None], "nothing of the old graph is kept"
