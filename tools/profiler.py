"""`lmdali profile`: how fast each part is alone, how fast the training step is, and what holds it back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import click
import torch
from torch import nn

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.device import pick_device
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType, Layout
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.tools.accelerator_command import au_command
from lmdali.tools.ceilings import copy_probe, decode_probe, read_probe, sample_records
from lmdali.tools.loader_options import BACKENDS, EpochOptions, epoch_options, form_options, loader_options
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Probe, Rate, WindowPlan, measure
from lmdali.tools.profile_compare import compare_command
from lmdali.tools.profile_page import report_command
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json
from lmdali.tools.step_probes import LoaderProbe, ModelProbe, Step
from lmdali.tools.throughput import Setting, ThroughputReport, print_report
from lmdali.tools.verdict import Evidence, judge

_LEARNING_RATE = 1e-6
"""Costs what any other does, and leaves the weights where no number of steps on one batch finds an infinity."""

_AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_BUSY_LOAD = 0.5  # of the CPUs


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(EpochOptions):
    """What to profile: the loader that `EpochOptions` says, in any form.

    Attributes:
        batch_size: samples per step.
        device: "auto", "cpu" or "cuda:N".
        dtype: of the images; for the two half precisions the model runs under autocast.
        layout: of the images; the model takes both.
        width: of the AlexNet; 1 is the paper's.
        seconds: for each of the four or five measurements, not counting warm-up.
        steps: for each measurement, instead of seconds.
        seed: of order and draws.
    """

    batch_size: int = LoaderConfig.batch_size
    device: str = "auto"
    dtype: DType = LoaderConfig.dtype
    layout: Layout = LoaderConfig.layout
    width: float = 1.0
    seconds: float = 3.0
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}; found {self.backend!r}")
        self.window_plan()

    @property
    def usable_threads(self) -> int:
        """`num_threads` with its default filled in."""
        return self.num_threads or usable_cpus()

    def window_plan(self) -> WindowPlan:
        """How long each part is measured."""
        return WindowPlan(seconds=self.seconds, steps=self.steps)

    def loader_config(self, dataset: Path, augment: AugmentConfig | None) -> LoaderConfig:
        """The loader to be profiled."""
        return LoaderConfig(
            dataset=dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            augment=augment or (AugmentConfig.pixels() if self.dtype == "uint8" else AugmentConfig.paper()),
            **self.loader_arguments(),
        )


def profile_dataset(
    dataset: Path,
    config: ProfileConfig | None = None,
    *,
    model: nn.Module | Literal["alexnet"] | None = "alexnet",
    augment: AugmentConfig | None = None,
    quiet: bool = False,
) -> ThroughputReport:
    """Measure the parts of a loader, the loader, a model, and the model fed by the loader.

    Args:
        dataset: made by `lmdali convert`.
        config: how; None takes the defaults.
        model: trains on the batches: a module, which is moved to the device and whose weights stay nearly what they
            are; "alexnet" of `config.width`; or None to measure the loader only.
        augment: what the loader does to the images; None is the paper's way, or plain pixels where the dtype is uint8.
        quiet: no progress.

    Raises:
        ConfigError: options that cannot work together.
        InputError: not a finished dataset.
        IntegrityError: the dataset is damaged.
        MachineError: the device or a package is missing.
    """
    config = config or ProfileConfig()
    device = pick_device(config.device)
    machine = machine_facts(device)
    manifest = load_manifest(dataset)
    loader_config = config.loader_config(dataset, augment)
    start = perf_counter()
    # Rank and world size are given: under torchrun, too, this measures one process on its own.
    with create_loader(loader_config, device, rank=0, world_size=1) as loader, torch.random.fork_rng():
        first = _first_batch(loader)
        first_seconds = perf_counter() - start
        trained = _place(model, config, len(manifest.class_names), device)
        step = None if trained is None else _training_step(trained, config, device)
        probes = _ceiling_probes(dataset, manifest, config)
        probes |= _step_probes(loader, loader_config.prefetch, first, step)
        rates = _measure(probes, config.window_plan(), device, quiet=quiet)
        setting = _setting(dataset, manifest, config, loader, device, trained)
    return ThroughputReport(
        setting=setting,
        read=rates["read"],
        decode=rates.get("decode"),
        memory_copy=rates.get("memory_copy"),
        loader=rates["loader"],
        model=rates.get("model"),
        together=rates.get("together"),
        time_to_first_batch_seconds=first_seconds,
        epoch_gap_seconds=_epoch_gap(probes),
        verdict=judge(_evidence(rates, setting)),
        machine=machine,
        cautions=_cautions(manifest, machine, config),
    )


def _first_batch(loader: DatasetLoader) -> Batch:
    with closing(iter(loader)) as batches:  # type: ignore[type-var]  # a generator
        return next(batches)


def _ceiling_probes(dataset: Path, manifest: Manifest, config: ProfileConfig) -> dict[str, Probe]:
    threads, size = config.usable_threads, manifest.image_size
    sample = sample_records(dataset, seed=config.seed)
    probes: dict[str, Probe] = {"read": read_probe(dataset, num_threads=threads, seed=config.seed)}
    if manifest.encoding == "raw":
        probes["memory_copy"] = copy_probe(sample, size, num_threads=threads)
    else:
        probes["decode"] = decode_probe(sample, size, num_threads=threads)
    return probes


def _step_probes(loader: DatasetLoader, prefetch: int, first: Batch, step: Step | None) -> dict[str, Probe]:
    alone: dict[str, Probe] = {"loader": LoaderProbe(loader, prefetch)}
    if step is None:
        return alone
    return alone | {"model": ModelProbe(step, first), "together": LoaderProbe(loader, prefetch, step)}


def _place(
    model: nn.Module | Literal["alexnet"] | None, config: ProfileConfig, num_classes: int, device: torch.device
) -> nn.Module | None:
    """The model on its device, ready for training."""
    if model is None:
        return None
    if not isinstance(model, nn.Module):
        model = AlexNet(AlexNetConfig(num_classes=max(num_classes, 2), width=config.width))
    placed: nn.Module = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed.train()


def _training_step(model: nn.Module, config: ProfileConfig, device: torch.device) -> Step:
    optimizer = PaperSGD(parameter_groups(model, TrainConfig(weight_decay=0.0)), _LEARNING_RATE)
    precision = _AUTOCAST.get(config.dtype, torch.float32)
    return TrainStep(model, optimizer, device=device, precision=precision, cuda_graph=True)  # as training is by default


def _measure(probes: Mapping[str, Probe], plan: WindowPlan, device: torch.device, *, quiet: bool) -> dict[str, Rate]:
    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with progress_bar("profile", len(probes) * plan.windows, unit="windows", quiet=quiet) as progress:
        rates = measure(list(probes.values()), plan, synchronize=synchronize, progress=progress)
    return dict(zip(probes, rates, strict=True))


def _setting(
    dataset: Path,
    manifest: Manifest,
    config: ProfileConfig,
    loader: DatasetLoader,
    device: torch.device,
    model: nn.Module | None,
) -> Setting:
    return Setting(
        dataset=str(dataset),
        dataset_digest=manifest.digest,
        num_samples=manifest.num_records,
        encoding=manifest.encoding,
        mean_record_bytes=manifest.payload_bytes / manifest.num_records,
        batch_size=config.batch_size,
        steps_per_epoch=len(loader),
        num_threads=config.usable_threads,
        backend=loader.backend_name,
        backend_reason=loader.backend_reason,
        order=loader.order_text,
        prefetch=config.prefetch,
        verify=config.verify,
        decoded_cache_bytes=config.decoded_cache_bytes,
        readahead_bytes=config.readahead_bytes,
        device=str(device),
        dtype=config.dtype,
        layout=config.layout,
        model=None if model is None else type(model).__name__,
        num_parameters=None if model is None else sum(weights.numel() for weights in model.parameters()),
    )


def _evidence(rates: Mapping[str, Rate], setting: Setting) -> Evidence:
    return Evidence(
        loader=rates["loader"],
        model=rates.get("model"),
        together=rates.get("together"),
        steps_per_epoch=setting.steps_per_epoch,
        num_threads=setting.num_threads,
        num_cpus=usable_cpus(),
        on_gpu=setting.device.startswith("cuda"),
        backend=setting.backend,
        encoding=setting.encoding,
    )


def _epoch_gap(probes: Mapping[str, Probe]) -> float | None:
    probe = probes.get("together") or probes.get("loader")
    gaps = probe.epoch_gaps_seconds if isinstance(probe, LoaderProbe) else []
    return median(gaps) if gaps else None


def _cautions(manifest: Manifest, machine: Mapping[str, Any], config: ProfileConfig) -> tuple[str, ...]:
    """What limits these numbers, whatever they say."""
    found = []
    load, cpus = machine["load_average"], machine["num_cpus"]
    if load > _BUSY_LOAD * cpus:
        found.append(
            f"the machine was busy before this began (load average {load:.1f} on {cpus} CPUs): "
            "compare shares, not rates"
        )
    if machine["memory_bytes"] is not None and manifest.file_bytes < machine["memory_bytes"]:
        found.append("the dataset fits into memory: reads came from the page cache, not from the disk")
    if config.decoded_cache_bytes:
        found.append("the decoded cache filled meanwhile: a first epoch is slower than this, later ones are faster")
    return tuple(found)


@click.group("profile")
def command() -> None:
    """Say where a training run's time goes."""


command.add_command(compare_command)
command.add_command(report_command)
command.add_command(au_command)


@command.command("run")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("-b", "--batch-size", default=ProfileConfig.batch_size, show_default=True, help="Samples per step.")
@loader_options
@epoch_options
@form_options
@click.option("--device", default=ProfileConfig.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option("--width", default=ProfileConfig.width, show_default=True, help="Of the AlexNet; 1 is the paper's.")
@click.option("--seconds", default=ProfileConfig.seconds, show_default=True, help="For each measurement.")
@click.option("--steps", type=click.IntRange(1), help="For each measurement, instead of seconds.")
@click.option("--seed", default=ProfileConfig.seed, show_default=True, help="Of order and draws.")
@click.option("--no-model", is_flag=True, help="Measure the loader only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(dataset: Path, no_model: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure DATASET: ceilings first, then the loader, an AlexNet, and the AlexNet fed by the loader.

    Stages of the loader: read finds records and compares CRCs, decode goes from JPEG bytes to the planes in the file
    (entropy decoding, IDCT), augment from these or from raw pixels to the batch (upsampling, colour, crop, flip,
    normalisation). Pages that are not in memory are paid for by the stage that touches them first.
    """
    report = profile_dataset(dataset, ProfileConfig(**options), model=None if no_model else "alexnet", quiet=quiet)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
