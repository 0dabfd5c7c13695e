"""`lmdali profile`: how fast each part is alone, how fast the training step is, and what holds it back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from statistics import median
from time import perf_counter
from typing import Any, Literal

import click
import torch
from torch import nn

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.device import pick_device
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.ceilings import copy_probe, decode_probe, read_probe, sample_records
from lmdali.tools.measurement import Probe, Rate, WindowPlan, measure
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json
from lmdali.tools.throughput import ThroughputReport, print_report
from lmdali.tools.verdict import Evidence, judge

_LEARNING_RATE = 1e-6
"""Costs the same as any other, and keeps the weights where thousands of steps on noise find no infinity."""

_AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_BUSY_LOAD = 0.5


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What to profile.

    Attributes:
        batch_size: samples per step.
        workers: loader threads; None means every CPU this process may use.
        backend: as in `LoaderConfig`.
        device: "auto", "cpu" or "cuda:N", for batches and model.
        dtype: of the images; the model runs under autocast for the two half precisions.
        width: of the AlexNet, 1 is the paper's.
        seconds: per measurement; there are four or five.
        steps: counted steps per measurement, instead of seconds.
        model: measure a model too.
        seed: of order and draws.
    """

    batch_size: int = 128
    workers: int | None = None
    backend: Literal["auto", "cpu", "dali"] = "auto"
    device: str = "auto"
    dtype: DType = "float32"
    width: float = 1.0
    seconds: float = 3.0
    steps: int | None = None
    model: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "cpu", "dali"):
            raise ConfigError(f"backend must be auto, cpu or dali, found {self.backend!r}")
        self.window_plan()

    def window_plan(self) -> WindowPlan:
        """How long each part is measured."""
        return WindowPlan(seconds=self.seconds, steps=self.steps)

    def loader_config(self, dataset: Path, augment: AugmentConfig | None) -> LoaderConfig:
        """The loader to be profiled."""
        chosen = augment or (AugmentConfig.pixels() if self.dtype == "uint8" else AugmentConfig.paper())
        return LoaderConfig(
            dataset=dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            augment=chosen,
            backend=self.backend,
            dtype=self.dtype,
            num_threads=self.workers,
        )


class LoaderProbe:
    """A loader on its own, epoch after epoch; with a step, each batch is also trained on.

    Args:
        loader: read from where it is; its position goes on from window to window.
        batch_size: samples per step.
        prefetch: of the loader.
        step: what is done with each batch.
    """

    def __init__(self, loader: DatasetLoader, prefetch: int, step: TrainStep | None = None) -> None:
        self._loader, self._step = loader, step
        # What was loaded ahead while nobody took it would pass for speed: it is used up before the clock starts.
        self.warmup_steps = prefetch + 1
        self.epoch_gaps: list[float] = []

    def run(self) -> Iterator[int]:
        """Each step is one batch."""
        self._loader.load_state_dict(self._loader.state_dict())
        within_epoch = False
        while True:
            start = perf_counter()
            batches = iter(self._loader)
            try:
                for batch in batches:
                    if within_epoch:
                        self.epoch_gaps.append(perf_counter() - start)
                        within_epoch = False
                    if self._step is not None:
                        self._step(batch, _LEARNING_RATE)
                    yield len(batch.labels)
            finally:
                batches.close()  # type: ignore[attr-defined]  # cancels what was loaded ahead
            within_epoch = True

    def stage_seconds(self) -> dict[str, float]:
        """The loader's own timers."""
        return self._loader.stage_seconds()


class ModelProbe:
    """Training steps on one batch, again and again: what the model would do if data cost nothing.

    Args:
        step: the training step.
        batch: on the model's device.
    """

    warmup_steps = 2

    def __init__(self, step: TrainStep, batch: Batch) -> None:
        self._step, self._batch = step, batch

    def run(self) -> Iterator[int]:
        """Each step is one update."""
        while True:
            self._step(self._batch, _LEARNING_RATE)
            yield len(self._batch.labels)

    def stage_seconds(self) -> dict[str, float]:
        """One kind of work: nothing to tell apart."""
        return {}


def profile_dataset(
    dataset: Path,
    config: ProfileConfig | None = None,
    *,
    augment: AugmentConfig | None = None,
    model: nn.Module | None = None,
    quiet: bool = False,
) -> ThroughputReport:
    """Measure a dataset's loader, a model, and both together.

    Args:
        dataset: made by `lmdali convert`.
        config: how; None takes the defaults.
        augment: what the loader does with the images; None is the paper's, or plain pixels for uint8.
        model: what trains on the batches; None is an AlexNet of `config.width`. It is moved to the device and trained
            on with a learning rate that hardly moves it.
        quiet: no progress.

    Raises:
        LmdaliError: see `lmdali.pipeline.errors`.
    """
    config = config or ProfileConfig()
    device = pick_device(config.device)
    manifest = load_manifest(dataset)
    loader_config = config.loader_config(dataset, augment)
    threads = config.workers or usable_cpus()
    cautions = _cautions(device)
    with ExitStack() as stack:
        start = perf_counter()
        loader = stack.enter_context(create_loader(loader_config, device, rank=0, world_size=1))
        first = _first_batch(loader)
        first_seconds = None if first is None else perf_counter() - start
        probes: dict[str, Probe] = {"read": read_probe(dataset, num_threads=threads, seed=config.seed)}
        sample = sample_records(dataset, seed=config.seed)
        if manifest.encoding == "raw":
            probes["memory_copy"] = copy_probe(sample, manifest.image_size, num_threads=threads)
        else:
            probes["decode"] = decode_probe(sample, manifest.image_size, num_threads=threads)
        fed = trained = None
        if first is not None:
            fed = probes["loader"] = LoaderProbe(loader, loader_config.prefetch)
            if config.model:
                trained = _make_model(model, config, len(manifest.class_names)).to(
                    device=device, memory_format=torch.channels_last  # type: ignore[call-overload]
                )
                step = _train_step(trained, config, device)
                probes["model_alone"] = ModelProbe(step, first)
                fed = probes["together"] = LoaderProbe(loader, loader_config.prefetch, step)
        rates = _measure_all(probes, config.window_plan(), device, quiet=quiet)
        backend, reason = loader.backend_name, loader.backend_reason
        steps_per_epoch = len(loader)
    verdict = judge(
        Evidence(
            loader=rates.get("loader"),
            model=rates.get("model_alone"),
            together=rates.get("together"),
            steps_per_epoch=steps_per_epoch,
            num_threads=threads,
            num_cpus=usable_cpus(),
            on_gpu=device.type == "cuda",
            backend=backend,
            encoding=manifest.encoding,
        )
    )
    ...
