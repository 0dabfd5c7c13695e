"""A training step as a CUDA graph: captured once, then replayed, so that launching kernels costs nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_EAGER_STEPS = 3
"""Ordinary steps before a capture: libraries choose their algorithms and optimisers make their state in them."""

_MAX_SHAPES = 2
"""Of batches, a graph each: that of an epoch, and that of its last batch, which may be smaller."""


class GraphedStep:
    """Runs `work` as it is a few times, captures it, and from then on replays the capture.

    Every call is one step of training, the first ones included. Random numbers go on from call to call: torch moves
    its generator along with each replay. Batches of two shapes have their own graphs, in the same memory; a third
    takes the place of the one that was used longest ago.

    Args:
        work: takes images and labels on the device and returns figures there. Whatever else it reads must stay where
            it is and be changed in place, and it may not wait for the device.
        settings: what `work` has built in (momentum, which layers are frozen): when it changes, so do the graphs.
    """

    def __init__(
        self, work: Callable[[Tensor, Tensor], Tensor], settings: Callable[[], Hashable] = lambda: None
    ) -> None:
        self._work, self._settings = work, settings
        self._built_in: Hashable = None
        self._shapes: dict[Hashable, _GraphOfShape] = {}  # the one used last is the last one
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; the figures are the caller's own."""
        built_in = self._settings()
        if built_in != self._built_in:
            self._built_in = built_in
            self._shapes.clear()
        if self._stream is None:
            # torch's own stream for captures is of the GPU that was current when the first was made: on another one
            # nothing would be captured, and a replay would train nothing. And graphs share memory on one stream only.
            self._stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        key = (images.shape, images.stride(), images.dtype, labels.shape)
        graph = self._shapes.pop(key, None) or _GraphOfShape(self._work, images, labels, self._stream)
        if len(self._shapes) == _MAX_SHAPES:
            del self._shapes[next(iter(self._shapes))]
        others = [other for other in self._shapes.values() if other.pool is not None]
        self._shapes[key] = graph
        return graph(images, labels, pool=others[0].pool if others else None)


class _GraphOfShape:
    """The same for batches of one shape.

    Args:
        work: see `GraphedStep`.
        images: of such a batch.
        labels: likewise.
        stream: where steps run before the capture, and are captured; of the GPU that has the images.
    """

    def __init__(
        self, work: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, stream: torch.cuda.Stream
    ) -> None:
        self._work, self._stream = work, stream
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._figures = torch.empty(0)

    @property
    def pool(self) -> Any:
        """The memory of the graph, once there is one."""
        return None if self._graph is None else self._graph.pool()

    def __call__(self, images: Tensor, labels: Tensor, *, pool: Any) -> Tensor:
        """One step.

        Args:
            images: of the shape.
            labels: likewise.
            pool: memory for a capture, which another graph may use as well: none of them reads what it has not
                written itself, and never do two run at a time.
        """
        self._images.copy_(images)
        self._labels.copy_(labels)
        if self._graph is None:
            if self._calls < _EAGER_STEPS:
                self._calls += 1
                return self._on_side_stream()
            graph = torch.cuda.CUDAGraph()
            # Of this thread: those of a loader that decodes on the GPU go on calling the driver meanwhile.
            capture = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
            with torch.cuda.device(self._images.device), capture, _no_collections():
                self._figures = self._work(self._images, self._labels)
            self._graph = graph
        self._graph.replay()
        return self._figures.clone()

    def _on_side_stream(self) -> Tensor:
        """As a capture will run: autograd must first have seen these tensors on a stream that is not the default."""
        current = torch.cuda.current_stream(self._images.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            figures = self._work(self._images, self._labels)
        current.wait_stream(self._stream)
        figures.record_stream(current)
        return figures


@contextmanager
def _no_collections() -> Iterator[None]:
    """The garbage collector may end a batch whose memory a loader then waits for: an event that no graph may have."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
