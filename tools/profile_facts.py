"""From what a profile measured to what its report says: the setting, the evidence, what limits the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.manifest import Manifest
from lmdali.tools.augment_options import describe_augment
from lmdali.tools.cold_run import CacheState, ColdRun
from lmdali.tools.lock_wait import LockWait, lock_caution, with_lock_wait
from lmdali.tools.measurement import Probe, Rate, WindowPlan
from lmdali.tools.prediction import Costs, Resources
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.stage_detail import Calls, StageDetail, record_stages, write_trace
from lmdali.tools.step_probes import LoaderProbe
from lmdali.tools.suggestion import Situation
from lmdali.tools.throughput import Setting
from lmdali.tools.verdict import Evidence, Verdict

_BUSY_LOAD = 0.5  # of the CPUs


def setting_of(
    dataset: Path | str,
    manifest: Manifest,
    config: ProfileConfig,
    loader: DatasetLoader,
    device: torch.device,
    model: nn.Module | None,
    augment: AugmentConfig,
) -> Setting:
    """What is profiled."""
    return Setting(
        dataset=str(dataset),
        dataset_digest=manifest.digest,
        num_samples=manifest.num_records,
        encoding=manifest.encoding,
        mean_record_bytes=manifest.mean_record_bytes,
        batch_size=config.batch_size,
        steps_per_epoch=len(loader),
        num_threads=config.usable_threads,
        backend=loader.backend_name,
        backend_reason=loader.backend_reason,
        order=loader.order_text,
        prefetch=loader.prefetch,
        verify=config.verify,
        decoded_cache_bytes=config.decoded_cache_bytes,
        readahead_bytes=config.readahead_bytes,
        device=str(device),
        dtype=config.dtype,
        layout=config.layout,
        augment=describe_augment(augment),
        model=None if model is None else type(model).__name__,
        num_parameters=None if model is None else sum(weights.numel() for weights in model.parameters()),
    )


def evidence_of(rates: Mapping[str, Rate], setting: Setting, num_cpus: int | None = None) -> Evidence:
    """What the verdict is made from; `num_cpus` of a rank is its part of its machine's, None is all of them."""
    return Evidence(
        loader=rates["loader"],
        model=rates.get("model"),
        together=rates.get("together"),
        steps_per_epoch=setting.steps_per_epoch,
        num_threads=setting.num_threads or 1,
        num_cpus=num_cpus or usable_cpus(),
        on_gpu=setting.device.startswith("cuda"),
        backend=setting.backend,
        encoding=setting.encoding,
        dtype=setting.dtype,
        verify=setting.verify,
    )


def epoch_gap(probes: Mapping[str, Probe]) -> float | None:
    """Median wait for the first batch of an epoch that follows another, seconds; None where no epoch ended."""
    probe = probes.get("together") or probes.get("loader")
    gaps = probe.epoch_gaps_seconds if isinstance(probe, LoaderProbe) else []
    return median(gaps) if gaps else None


def look_inside(
    loader: DatasetLoader, plan: WindowPlan, idle: Calls | None, trace: Path | None
) -> tuple[StageDetail, LockWait | None]:
    """Single calls of a loader that runs alone, and waits for Python's lock meanwhile.

    Args:
        loader: goes on where it is.
        plan: says how long.
        idle: waits of the process before it began.
        trace: file for the calls in Chrome's format.
    """
    recording, lock = with_lock_wait(idle, partial(record_stages, loader, plan))
    if trace is not None:
        write_trace(trace, recording)
    return StageDetail.of(recording), lock


def cautions_on(
    cache: CacheState | None, machine: Mapping[str, Any], config: ProfileConfig, lock: LockWait | None
) -> tuple[str, ...]:
    """What limits the numbers of a loader of ours, whatever they say; `cache` is None where no storage was read."""
    found = list(common_cautions(machine, config, lock))
    if cache is not None and cache.state == "warm" and not config.cold:
        found.append("reads came from the page cache, not from the disk: --cold measures that, too")
    if cache is not None and cache.state == "mixed":
        found.append("a part of what was read came from the page cache and a part from the disk: run it again")
    if config.decoded_cache_bytes:
        found.append("the decoded cache filled meanwhile: a first epoch is slower than this, later ones are faster")
    return tuple(found)


def busy_caution(machine: Mapping[str, Any]) -> tuple[str, ...]:
    """Whether others used the machine; a reason to doubt rates, of any loader."""
    load, cpus = machine["load_average"], machine["num_cpus"]
    if load <= _BUSY_LOAD * cpus:
        return ()
    return (
        f"the machine was busy before this began (load average {load:.1f} on {cpus} CPUs): compare shares, not rates",
    )


def common_cautions(machine: Mapping[str, Any], config: ProfileConfig, lock: LockWait | None) -> tuple[str, ...]:
    """What limits the numbers of any loader."""
    found = list(busy_caution(machine))
    if config.nvtx and config.ranges() is None:
        found.append("no NVTX ranges: neither a torch for CUDA nor the package nvtx is here (pip install nvtx)")
    return (*found, *lock_caution(lock))


def judged_cold(verdict: Verdict, cold: ColdRun | None) -> Verdict:
    """INVALID where a cold run was asked for and was none."""
    if cold is None or cold.problem is None:
        return verdict
    advice = "Close what uses the dataset, or copy it to a local disk; without --cold the warm run is judged alone."
    return replace(
        verdict, bound="INVALID", stage=None, reason=f"the cold run was not cold: {cold.problem}", advice=advice
    )


def situation_of(
    verdict: Verdict,
    rates: Mapping[str, Rate],
    evidence: Evidence,
    config: ProfileConfig,
    manifest: Manifest,
    memory_bytes: int | None,
    cache: CacheState,
) -> Situation:
    """What the suggestion is made from; of a rank, `memory_bytes` are its part of its machine's."""
    measured = rates.get("together", rates["loader"])
    return Situation(
        bound=verdict.bound,
        costs=Costs.measured(evidence.loader, evidence.model, on_gpu=evidence.on_gpu),
        resources=Resources(
            num_cpus=evidence.num_cpus,
            num_threads=config.usable_threads,
            batch_size=config.batch_size,
            prefetch=config.prefetch,
        ),
        measured=measured.images_per_second,
        encoding=manifest.encoding,
        backend=evidence.backend,
        verify=config.verify,
        decoded_cache_bytes=config.decoded_cache_bytes,
        decoded_bytes=manifest.num_records * 3 * manifest.image_size**2,
        memory_bytes=memory_bytes,
        raw_bytes=3 * manifest.image_size**2,
        reads_storage=cache.state in ("cold", "mixed"),
    )
