"""Rates of settings that were not measured, from the costs of one that was. Whatever comes out is a prediction.

A loader is as fast as the scarcest of three things: its threads, of which each image takes some seconds; the CPUs,
which these seconds need in part; and the consumer's own thread. A training step on the same CPUs needs them too, on a
GPU it runs beside the loader. What the model misses (memory bandwidth, locks, caches) it misses before and after a
change, so a prediction is the measured rate times the quotient of two modelled ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lmdali.pipeline.batch_tasks import default_prefetch, samples_per_task
from lmdali.tools.measurement import Rate

WORKER_STAGES = ("read", "verify", "decode", "augment")
"""Stages of the loader's threads."""

CONSUMER_STAGES = ("plan", "collate", "copy")
"""Stages of the consumer's thread."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a run may use.

    Attributes:
        num_cpus: that the process may use.
        num_threads: of the loader.
        batch_size: samples per step.
        prefetch: batches worked on ahead; None is the loader's default, which goes with the threads.
    """

    num_cpus: int
    num_threads: int
    batch_size: int
    prefetch: int | None

    @property
    def depth(self) -> int:
        """`prefetch` with its default filled in."""
        return self.prefetch or default_prefetch(self.batch_size, self.num_threads)

    @property
    def tasks_per_batch(self) -> int:
        """Tasks that the loader cuts a batch into."""
        return -(-self.batch_size // samples_per_task(self.batch_size, self.num_threads, self.depth))

    @property
    def busy_threads(self) -> int:
        """Threads that can be busy at a time."""
        return min(self.num_threads, (self.depth + 1) * self.tasks_per_batch)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What an image costs, in seconds.

    Attributes:
        worker: per stage, of a loader thread.
        consumer: per stage, of the consumer's thread.
        loader_cpu: CPU time of the loader.
        model: of a training step without a loader, per image; None without a model.
        model_cpu: CPU time of that.
        on_gpu: whether the model runs on a GPU.
    """

    worker: Mapping[str, float]
    consumer: Mapping[str, float]
    loader_cpu: float
    model: float | None = None
    model_cpu: float = 0.0
    on_gpu: bool = False

    @classmethod
    def measured(cls, loader: Rate, model: Rate | None, *, on_gpu: bool) -> Costs:
        """From the rates of a loader alone and of a model alone."""
        return cls(
            worker=known(loader.stage_seconds_per_image, WORKER_STAGES),
            consumer=known(loader.stage_seconds_per_image, CONSUMER_STAGES),
            loader_cpu=loader.cpu_seconds_per_image,
            model=None if model is None else 1 / model.images_per_second,
            model_cpu=0.0 if model is None else model.cpu_seconds_per_image,
            on_gpu=on_gpu,
        )

    def scaled(self, factors: Mapping[str, float]) -> Costs:
        """With some stages of the threads made cheaper or dearer; their CPU time goes with them in proportion."""
        worker = {stage: seconds * factors.get(stage, 1.0) for stage, seconds in self.worker.items()}
        total = sum(self.worker.values()) + sum(self.consumer.values())
        share = min(1.0, self.loader_cpu / total) if total else 0.0
        saved = share * (sum(self.worker.values()) - sum(worker.values()))
        return replace(self, worker=worker, loader_cpu=max(0.0, self.loader_cpu - saved))


def known(per_image: Mapping[str, float | None], stages: tuple[str, ...]) -> dict[str, float]:
    """The stages of these that were timed."""
    return {stage: seconds for stage in stages if (seconds := per_image.get(stage)) is not None}


def loader_limits(costs: Costs, resources: Resources) -> dict[str, float]:
    """What the loader alone is held back by, in words, and the images/s that each allows; infinity where none."""
    needs = {
        "the CPUs": (resources.num_cpus, costs.loader_cpu),
        "the loader's threads": (resources.busy_threads, sum(costs.worker.values())),
        "the loader's consumer": (1, sum(costs.consumer.values())),
    }
    return {name: have / need if need > 0 else float("inf") for name, (have, need) in needs.items()}


def loader_rate(costs: Costs, resources: Resources) -> float:
    """Modelled images/s of the loader alone; infinity where nothing is known to limit it."""
    return min(loader_limits(costs, resources).values())


def step_limits(costs: Costs, resources: Resources) -> dict[str, float]:
    """The same for training steps fed by the loader; for the loader alone without a model."""
    limits = loader_limits(costs, resources)
    if costs.model is None:
        return limits
    cpu = costs.loader_cpu + costs.model_cpu
    if not costs.on_gpu and cpu > 0:
        limits["the CPUs"] = resources.num_cpus / cpu
    return limits | {"the model": 1 / costs.model}


def step_rate(costs: Costs, resources: Resources) -> float:
    """Modelled images/s of training steps fed by the loader; of the loader alone without a model."""
    return min(step_limits(costs, resources).values())


def predict(measured: float, before: tuple[Costs, Resources], after: tuple[Costs, Resources]) -> float | None:
    """The measured rate, carried over to other costs and resources; None where nothing is known that would limit it."""
    quotient = step_rate(*after) / step_rate(*before)
    return measured * quotient if 0 < quotient < float("inf") else None
