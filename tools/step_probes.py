"""What a profile measures besides ceilings: a loader alone, training steps on one batch, and both together."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from time import perf_counter

import torch
from torch import nn

from lmdali.pipeline.batch import Batch
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.tools.measurement import Probe, Rate, WindowPlan, measure
from lmdali.tools.profiled_model import resting_optimizer
from lmdali.tools.progress import progress_bar

Step = Callable[[Batch], object]
"""Trains on a batch; may return before the device is done."""


def first_batch(loader: DatasetLoader) -> Batch:
    """The batch at a loader's place; what was begun behind it is dropped."""
    with closing(iter(loader)) as batches:  # type: ignore[type-var]  # a generator
        return next(batches)


WARMUP_STEPS = 3
"""The first steps of any window. Few, for they are seconds each where an AlexNet trains on a CPU."""

GRAPH_STEPS = 6
"""On a GPU the first few steps are ordinary, and one captures the graph of the others."""


class LoaderProbe:
    """A loader, epoch after epoch: alone, or with a training step on each batch.

    Args:
        loader: goes on where the last window left it, so that no window reads what another one has just warmed.
        step: done with each batch.
    """

    def __init__(self, loader: DatasetLoader, step: Step | None = None) -> None:
        self._loader, self._step = loader, step
        self.warmup_steps = self.steps_to_fill(loader.prefetch)
        self.epoch_gaps_seconds: list[float] = []

    @staticmethod
    def steps_to_fill(prefetch: int) -> int:
        """Until the queue is as full as it will be, a step pays for more or fewer batches than the one it takes."""
        return max(prefetch + 1, WARMUP_STEPS)

    def run(self) -> Iterator[int]:
        """Each step is one batch."""
        self._loader.load_state_dict(self._loader.state_dict())
        first_epoch = True
        while True:
            start = perf_counter()
            batches = iter(self._loader)
            try:
                for number, batch in enumerate(batches):
                    if number == 0 and not first_epoch:
                        self.epoch_gaps_seconds.append(perf_counter() - start)
                    if self._step is not None:
                        self._step(batch)
                    yield len(batch.labels)
            finally:
                batches.close()  # type: ignore[attr-defined]  # drops what was being loaded ahead
            first_epoch = False

    def stage_seconds(self) -> dict[str, float]:
        """The loader's own timers."""
        return self._loader.stage_seconds()


class ModelProbe(Probe):
    """Training steps on one batch, again and again: what the model would do if data cost nothing.

    Args:
        step: done with the batch.
        batch: on the model's device.
    """

    def __init__(self, step: Step, batch: Batch) -> None:
        self._step, self._batch = step, batch
        self.warmup_steps = GRAPH_STEPS if batch.images.device.type == "cuda" else WARMUP_STEPS - 1

    def run(self) -> Iterator[int]:
        """Each step is one update."""
        while True:
            self._step(self._batch)
            yield len(self._batch.labels)


class OptimizerProbe(Probe):
    """The paper's update of all weights of a model, and nothing else; on copies, with gradients of zero.

    Args:
        model: on its device.
        batch_size: images that one update counts for.
    """

    warmup_steps = 2

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size

    def run(self) -> Iterator[int]:
        """Each step is one update."""
        copied = copy.deepcopy(self._model)  # for a window only: it is as large as the model
        for weights in copied.parameters():
            weights.grad = torch.zeros_like(weights)
        optimizer = resting_optimizer(copied)
        while True:
            optimizer.step()
            yield self._batch_size


class DeviceCopyProbe(Probe):
    """Batches of uint8 crops in pinned memory to a GPU, two buffers in turn.

    Args:
        device: the GPU.
        shape: of a batch, images first.
    """

    warmup_steps = 4

    def __init__(self, device: torch.device, shape: tuple[int, ...]) -> None:
        self._device, self._batch_size = device, shape[0]
        self._buffers = [torch.zeros(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]

    def run(self) -> Iterator[int]:
        """Each step is one batch; at most four are under way."""
        events: deque[torch.cuda.Event] = deque()
        step = 0
        while True:
            self._buffers[step % 2].to(self._device, non_blocking=True)
            events.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            events[-1].record(torch.cuda.current_stream(self._device))
            if len(events) > 4:
                events.popleft().synchronize()
            step += 1
            yield self._batch_size


def step_probes(
    probe: Callable[[Step | None], Probe], first: Batch, model: nn.Module | None, step: Step | None
) -> dict[str, Probe]:
    """A loader, and what a model adds to it, by the names of their rates in the report.

    Args:
        probe: of the loader, with this step on each batch.
        first: batch of the loader.
        model: that the step trains; None measures the loader only.
        step: None without a model.
    """
    probes = {"loader": probe(None)}
    if model is None or step is None:
        return probes
    probes["optimizer"] = OptimizerProbe(model, len(first.labels))
    return probes | {"model": ModelProbe(step, first), "together": probe(step)}


def measure_on(device: torch.device, probes: Mapping[str, Probe], plan: WindowPlan, *, quiet: bool) -> dict[str, Rate]:
    """Rates of named probes, in turn, with progress; a GPU is waited for at the ends of each window."""

    def synchronize() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    with progress_bar("profile", len(probes) * plan.windows, unit="windows", quiet=quiet) as progress:
        rates = measure(list(probes.values()), plan, synchronize=synchronize, progress=progress)
    return dict(zip(probes, rates, strict=True))
