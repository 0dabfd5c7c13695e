"""A training step as one CUDA graph: captured once, then replayed, so that launching kernels costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_EAGER_STEPS = 3
"""Ordinary steps before a capture: libraries choose their algorithms and optimisers make their state in them."""


class GraphedStep:
    """Runs `work` as it is a few times, captures it, and from then on replays the capture.

    Every call is one step of training, the first ones included. Random numbers go on from call to call: torch moves
    its generator along with each replay.

    Args:
        work: takes images and labels on the device and returns figures there. Whatever else it reads must stay where
            it is and be changed in place, and it may not wait for the device.
        settings: what `work` has built in (momentum, which layers are frozen): when it changes, so does the graph.
    """

    def __init__(
        self, work: Callable[[Tensor, Tensor], Tensor], settings: Callable[[], Hashable] = lambda: None
    ) -> None:
        self._work, self._settings = work, settings
        self._key: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
        self._images = self._labels = self._figures = torch.empty(0)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; the figures are the caller's own."""
        key = (images.shape, images.stride(), images.dtype, labels.shape, self._settings())
        if key != self._key:
            if self._key is not None and len(labels) < len(self._labels):
                return self._work(images, labels)  # the last, smaller batch of an epoch is not worth a graph
            self._key, self._calls, self._graph = key, 0, None
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        if self._graph is None:
            if self._calls < _EAGER_STEPS:
                self._calls += 1
                return self._on_side_stream()
            self._graph = torch.cuda.CUDAGraph()
            # Of this thread: those of a loader that decodes on the GPU go on calling the driver meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._figures = self._work(self._images, self._labels)
        self._graph.replay()
        return self._figures.clone()

    def _on_side_stream(self) -> Tensor:
        """As a capture will run: autograd must first have seen these tensors on a stream that is not the default."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._images.device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._images.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            figures = self._work(self._images, self._labels)
        current.wait_stream(self._stream)
        figures.record_stream(current)
        return figures
