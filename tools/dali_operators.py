"""What the operators inside DALI cost: graphs that end early, measured against each other.

DALI's `executor_statistics` tells memory only. So each step of the graph is judged by what it adds: decoding alone,
decoding and cropping, and so on, windows of all of them in turn. On a GPU steps overlap, and what one adds to the
whole is less than what it takes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.record_codec import decode_stored
from lmdali.tools.augment_probe import first_plan
from lmdali.tools.ceilings import SAMPLE_BYTES, sample_records
from lmdali.tools.measurement import Probe, Rate, WindowPlan
from lmdali.tools.step_probes import measure_on

_INSIDE = 2
"""Batches inside DALI, as many as the backend has there."""


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """What one step of the graph adds.

    Attributes:
        name: input, decode, crop (and flip), normalize (and layout), mean_image (its subtraction, pixel by pixel).
        graph_images_per_second: of the graph that ends with this step.
        batch_seconds: that the step adds to a batch, median over the rounds; below zero by noise alone.
        seconds_per_image: the same for an image.
        cpu_seconds_per_image: CPU time of all threads that it adds.
    """

    name: str
    graph_images_per_second: float
    batch_seconds: float
    seconds_per_image: float
    cpu_seconds_per_image: float


class GraphProbe(Probe):
    """A DALI graph on records in memory, batch after batch.

    Args:
        pipeline: built.
        images: what "images" is fed with, as many as a batch has or more.
        batch_size: images per step.
        feed: feeds the other inputs.
    """

    warmup_steps = 4

    def __init__(self, pipeline: Any, images: Sequence[NDArray[np.uint8]], batch_size: int, feed: Any) -> None:
        self._pipeline, self._images, self._batch_size, self._feed = pipeline, images, batch_size, feed
        self._position = 0

    def run(self) -> Iterator[int]:
        """Each step is one batch."""
        inside = 0
        try:
            while True:
                while inside < _INSIDE:
                    numbers = range(self._position, self._position + self._batch_size)
                    self._pipeline.feed_input("images", [self._images[n % len(self._images)] for n in numbers])
                    self._feed()
                    self._pipeline.schedule_run()
                    self._position, inside = numbers.stop, inside + 1
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
                inside -= 1
                yield self._batch_size
        finally:
            for _ in range(inside):
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()


def measure_operators(
    config: LoaderConfig, device: torch.device, plan: WindowPlan, *, quiet: bool = False
) -> tuple[OperatorCost, ...]:
    """Costs of the steps of a loader's graph, in their order.

    Args:
        config: of a loader with the dali backend.
        device: of its batches.
        plan: for each graph.
        quiet: no progress.

    Raises:
        MissingExtraError: DALI is not installed.
    """
    dataset, batch_size, augment = Path(config.dataset), config.batch_size, config.augment
    spec = OutputSpec.of(augment, batch_size, config.dtype, config.layout, device)
    probes = _probes(dataset, config, spec, *first_plan(dataset, augment, batch_size, seed=config.seed))
    return operator_costs(measure_on(device, probes, plan, quiet=quiet), batch_size)


def _probes(
    dataset: Path, config: LoaderConfig, spec: OutputSpec, transform: Any, plan: BatchPlan
) -> dict[str, GraphProbe]:
    # Not at the top: DALI is a package that most profiles need not have.
    from lmdali.pipeline.dali_graph import build_part, feed_draws, graph_parts

    manifest = load_manifest(dataset)
    size, raw = manifest.image_size, manifest.encoding == "raw"
    sample = sample_records(dataset, seed=config.seed)
    if raw:
        images = [decode_stored(data, size) for data in sample[: max(1, SAMPLE_BYTES // (3 * size * size))]]
    else:
        images = [np.frombuffer(data, np.uint8) for data in sample]
    probes = {}
    for part in graph_parts(transform, spec, raw=raw):
        pipeline, form = build_part(part, size, transform, spec, num_threads=config.threads, raw=raw)

        def feed(pipeline: Any = pipeline, form: OutputSpec | None = form) -> None:
            if form is not None:
                feed_draws(pipeline, plan, form, size, transform.constant_mean)

        probes[part] = GraphProbe(pipeline, images, spec.batch_size, feed)
    return probes


def operator_costs(graphs: Mapping[str, Rate], batch_size: int) -> tuple[OperatorCost, ...]:
    """From the rates of graphs, each with one more step than the one before, to what the steps add."""
    costs: list[OperatorCost] = []
    before: Rate | None = None
    for name, rate in graphs.items():
        shorter = (0.0,) * len(rate.per_window) if before is None else tuple(1 / r for r in before.per_window)
        # Round by round: a machine that changes its speed meanwhile changes both.
        added = median(1 / now - then for now, then in zip(rate.per_window, shorter, strict=True))
        costs.append(
            OperatorCost(
                name=name,
                graph_images_per_second=rate.images_per_second,
                batch_seconds=added * batch_size,
                seconds_per_image=added,
                cpu_seconds_per_image=rate.cpu_seconds_per_image - (before.cpu_seconds_per_image if before else 0.0),
            )
        )
        before = rate
    return tuple(costs)
