"""A profile of a dataset at an address: the loader with its fetching, a model, and both together; no storage alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from torch import nn

from lmdali.model.device import pick_device
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_place import place_manifest, place_shown
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import create_loader
from lmdali.pipeline.nvtx_ranges import marked
from lmdali.tools.fetch_figures import FETCH_STAGE, FetchFigures, fetch_cautions
from lmdali.tools.lock_wait import idle_lock_wait
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Rate
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.profile_facts import cautions_on, epoch_gap, evidence_of, look_inside, setting_of
from lmdali.tools.profiled_model import kept_generators, place_model, require_trainable, training_step
from lmdali.tools.step_probes import LoaderProbe, Step, first_batch, measure_on, step_probes
from lmdali.tools.throughput import ThroughputReport
from lmdali.tools.verdict import judge


class StreamedProbe(LoaderProbe):
    """A `LoaderProbe` of a dataset at an address. Between its windows nothing is fetched ahead."""

    def run(self) -> Iterator[int]:
        """Each step is one batch."""
        try:
            yield from super().run()
        finally:  # what came while others are measured would be a present
            self._loader.pause_fetching()

    def stage_seconds(self) -> dict[str, float]:
        """The loader's own timers, with the waiting for shards told from reading."""
        stages, counts = super().stage_seconds(), self._loader.fetch_counts
        waited = 0.0 if counts is None else counts.wait_seconds
        return stages | {"read": max(0.0, stages["read"] - waited), FETCH_STAGE: waited}


def profile_address(
    address: str,
    config: ProfileConfig | None = None,
    *,
    model: nn.Module | Literal["alexnet"] | None = "alexnet",
    augment: AugmentConfig | None = None,
    trace: Path | None = None,
    quiet: bool = False,
) -> ThroughputReport:
    """Measure a loader of a dataset at an address, a model, and the model fed by the loader.

    Shards are fetched into the cache as in any run; what is there already is not fetched again.

    Args:
        address: of a dataset made by `lmdali convert`.
        config: how; None takes the defaults. Without `cold`, `what_if` and `parallel`.
        model: as in `profile_dataset`.
        augment: as in `profile_dataset`.
        trace: as in `profile_dataset`.
        quiet: no progress.

    Raises:
        ConfigError: options that cannot work together, or need a directory.
        RemoteError: the dataset cannot be reached.
        MachineError: the device or a package is missing.
    """
    config = config or ProfileConfig()
    if config.cold or config.what_if or config.parallel != "none":
        raise ConfigError(
            f"{place_shown(address)}: cold, what_if and parallel need the dataset on this machine: bring it here with "
            "`lmdali stage`, or leave them out"
        )
    require_trainable(model, augment)
    device = pick_device(config.device)
    machine, idle = machine_facts(device), idle_lock_wait()
    manifest = place_manifest(address, cache_dir=config.cache_dir)
    loader_config = config.loader_config(address, augment)
    start = perf_counter()
    with create_loader(loader_config, device, rank=0, world_size=1) as loader, kept_generators(device):
        ranges = config.ranges()
        loader.timers.annotate(ranges)
        first = first_batch(loader)
        first_seconds = perf_counter() - start
        trained = place_model(model, num_classes=len(manifest.class_names), width=config.width, device=device)
        step: Step | None = None
        if trained is not None:
            step = marked(ranges, "step", training_step(trained, dtype=config.dtype, device=device))
        probes = step_probes(partial(StreamedProbe, loader), first, trained, step)
        rates = measure_on(device, probes, config.window_plan(), quiet=quiet)
        rates = {name: _with_fetch(rate) for name, rate in rates.items()}
        counts = loader.fetch_counts
        inside, lock = look_inside(loader, config.window_plan(), idle, trace)
        setting = setting_of(place_shown(address), manifest, config, loader, device, trained, loader_config.augment)
    assert counts is not None, "the dataset is at an address"
    figures = FetchFigures.of(
        counts,
        rates,
        bytes_per_image=manifest.file_bytes / manifest.num_records,
        num_threads=config.usable_threads,
        num_cpus=usable_cpus(),
        on_gpu=device.type == "cuda",
    )
    measured: dict[str, Any] = rates
    return ThroughputReport(
        setting=setting,
        time_to_first_batch_seconds=first_seconds,
        epoch_gap_seconds=epoch_gap(probes),
        verdict=judge(evidence_of(rates, setting)),
        suggestion=None,
        machine=machine,
        cautions=(*cautions_on(None, machine, config, lock), *fetch_cautions(figures)),
        inside=inside,
        lock=lock,
        fetch=figures,
        **measured,
    )


def _with_fetch(rate: Rate) -> Rate:
    """Nobody waited: that was measured, and is zero."""
    stages = rate.stage_seconds_per_image
    return replace(rate, stage_seconds_per_image=stages | {FETCH_STAGE: stages[FETCH_STAGE] or 0.0}) if stages else rate
