"""A profile of somebody else's loader: what can be measured from outside, and null for what cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, Literal, cast

import torch
from torch import nn

from lmdali.model.device import pick_devices
from lmdali.model.parallel import Ranks, process_group
from lmdali.model.torchrun import torchrun_place
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.cpu_budget import rank_cpus
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.nvtx_ranges import marked
from lmdali.tools.foreign_loader import ForeignLoader, ForeignProbe
from lmdali.tools.lock_wait import idle_lock_wait, with_lock_wait
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Probe
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.profile_facts import common_cautions, evidence_of
from lmdali.tools.profiled_model import AUTOCAST, CROP_SIZE, kept_generators, place_model, training_step
from lmdali.tools.rank_profile import measure_job
from lmdali.tools.rank_report import judged_by_ranks
from lmdali.tools.stage_detail import MAX_SECONDS
from lmdali.tools.step_probes import Step, measure_on, step_probes
from lmdali.tools.throughput import Setting, ThroughputReport
from lmdali.tools.verdict import judge

NUM_CLASSES = 1000
"""Of the AlexNet, if no label is larger."""


def profile_iterable(
    make: Callable[[], Iterable[Any]],
    name: str,
    config: ProfileConfig | None = None,
    *,
    model: nn.Module | Literal["alexnet"] | None = "alexnet",
    quiet: bool = False,
) -> ThroughputReport:
    """Measure any iterable of batches, a model, and the model fed by it.

    Args:
        make: returns the iterable: a torch DataLoader, a DALI iterator, a generator.
        name: what the report calls it.
        config: of which device, dtype (for autocast), width, seconds, steps count here.
        model: as in `profile_dataset`.
        quiet: no progress.

    Raises:
        InputError: what it yields are no batches.
        ConfigError: its images do not fit the AlexNet, or something is asked for that needs a look inside.
        MachineError: the device or a package is missing, or another rank is gone.
    """
    config = config or ProfileConfig()
    if config.cold or config.what_if:
        raise ConfigError(f"--loader {name}: --cold and --what-if look inside a loader of ours: give a DATASET")
    place = torchrun_place(config.parallel)
    device = pick_devices(config.parallel, config.device, "", place)[0]
    with process_group(place, device) as ranks, kept_generators(device):
        return _profile(make, name, config, device, ranks, model, quiet=quiet or not ranks.is_first)


def _profile(
    make: Callable[[], Iterable[Any]],
    name: str,
    config: ProfileConfig,
    device: torch.device,
    ranks: Ranks,
    model: nn.Module | Literal["alexnet"] | None,
    *,
    quiet: bool,
) -> ThroughputReport:
    machine, idle = machine_facts(device), idle_lock_wait()
    start = perf_counter()
    loader = ForeignLoader(make, device)
    first = loader.take()
    first_seconds = perf_counter() - start
    if model == "alexnet":
        _check_images(first, config)
    classes = max(NUM_CLASSES, *ranks.gather(int(first.labels.max()) + 1))
    trained = place_model(model, num_classes=classes, width=config.width, device=device)
    ranges = config.ranges()

    def labelled(update: Step) -> Step:
        # Which class it is costs nothing; one that the network does not have would end the run.
        def on_known(batch: Batch) -> object:
            return update(Batch(batch.images, batch.labels % classes, batch.indices))

        return cast(Step, marked(ranges, "step", on_known))

    def fed(update: Step) -> Probe:
        return ForeignProbe(loader, labelled(update))

    step: Step | None = None
    if trained is not None:
        step = labelled(training_step(trained, dtype=config.dtype, device=device))
    probes = step_probes(partial(ForeignProbe, loader), first, trained, step)
    rates = measure_on(device, probes, config.window_plan(), quiet=quiet)
    own, (rates, job) = rates, measure_job(ranks, rates, fed, trained, config, device, quiet=quiet)
    window = replace(config.window_plan(), windows=1, seconds=min(config.seconds, MAX_SECONDS))
    alone: dict[str, Probe] = {"loader": ForeignProbe(loader)}
    _, lock = with_lock_wait(idle, partial(measure_on, device, alone, window, quiet=True))
    measured: dict[str, Any] = rates
    setting = _setting(name, loader, first, config, device, trained)
    return ThroughputReport(
        setting=setting,
        time_to_first_batch_seconds=first_seconds,
        epoch_gap_seconds=median(loader.epoch_gaps_seconds) if loader.epoch_gaps_seconds else None,
        verdict=judged_by_ranks(judge(evidence_of(own, setting, rank_cpus())), job),
        suggestion=None,
        machine=machine,
        cautions=common_cautions(machine, config, lock),
        lock=lock,
        ranks=job,
        **measured,
    )


def _check_images(first: Batch, config: ProfileConfig) -> None:
    shape, dtype = tuple(first.images.shape), first.images.dtype
    if shape[1:] not in ((3, CROP_SIZE, CROP_SIZE), (CROP_SIZE, CROP_SIZE, 3)):
        raise ConfigError(f"images of shape {shape} are not for the AlexNet ({CROP_SIZE} pixels, RGB): use --no-model")
    halves = (torch.float16, torch.bfloat16)
    if dtype.is_floating_point and dtype != torch.float32 and not (dtype in halves and config.dtype in AUTOCAST):
        name = str(dtype).removeprefix("torch.")
        cure = f"give --dtype {name}" if dtype in halves else "make them float32"
        raise ConfigError(f"images of {name} are not for the AlexNet with --dtype {config.dtype}: {cure}")


def _setting(
    name: str,
    loader: ForeignLoader,
    first: Batch,
    config: ProfileConfig,
    device: torch.device,
    model: nn.Module | None,
) -> Setting:
    planar = first.images.ndim == 4 and first.images.shape[1] == 3
    return Setting(
        dataset=name,
        num_samples=loader.num_samples,
        batch_size=len(first.labels),
        steps_per_epoch=loader.num_batches,
        num_threads=loader.num_workers,
        backend=loader.kind,
        backend_reason="--loader",
        device=str(device),
        dtype=str(first.images.dtype).removeprefix("torch."),
        layout="NCHW" if planar else "NHWC",
        model=None if model is None else type(model).__name__,
        num_parameters=None if model is None else sum(weights.numel() for weights in model.parameters()),
    )
