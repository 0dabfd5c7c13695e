"""Images per second to a GPU, by every way there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from gpu_ceilings import copy_ceiling, nvjpeg_ceilings
from gpu_stall import wait_for

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import BackendName, DType
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.augment_options import augment_for
from lmdali.tools.ceilings import copy_probe, decode_probe, sample_records
from lmdali.tools.measurement import Rate, WindowPlan, measure
from lmdali.tools.step_probes import LoaderProbe

DTYPES: tuple[DType, ...] = ("uint8", "float32", "float16", "bfloat16")
_SAMPLE_BYTES = 16_000_000

Row = dict[str, Any]
Ceilings = dict[str, float]
"""Images per second by name: "bus", "nvjpeg", "cpu jpeg", "cpu raw"; only what was measured."""


def ceilings(
    dataset: Path,
    device: torch.device,
    batch_size: int,
    plan: WindowPlan,
    found: Ceilings,
    backends: list[BackendName],
) -> Iterator[Row]:
    """The parts alone; also puts them into `found`."""
    manifest = load_manifest(dataset)
    size, kind = manifest.image_size, f"cpu {manifest.encoding}"
    sample = sample_records(dataset, max_bytes=_SAMPLE_BYTES)
    probe = (copy_probe if manifest.encoding == "raw" else decode_probe)(sample, size, num_threads=usable_cpus())
    rate = measure([probe], plan)[0]
    found[kind] = rate.images_per_second
    work = "copy" if manifest.encoding == "raw" else "decode"
    yield _row(f"{manifest.encoding}, {usable_cpus()} threads {work}", rate)
    if device.type != "cuda":
        yield {"what": "copy to the device, nvJPEG alone", "result": "needs a GPU", "passed": True}
        return
    if "bus" not in found:
        rate = copy_ceiling(device, batch_size, plan)
        found["bus"] = rate.images_per_second
        gigabytes = rate.images_per_second * 3 * 224 * 224 / 1e9
        yield _row("uint8 crops to the device", rate, f", {gigabytes:.1f} GB/s")
    if manifest.encoding == "jpeg" and "dali" in backends:
        from lmdali.pipeline.dali_graph import HARDWARE_SHARE  # needs DALI, which a machine may lack

        for share, rate in nvjpeg_ceilings(dataset, size, device, batch_size, plan).items():
            found["nvjpeg"] = max(found.get("nvjpeg", 0.0), rate.images_per_second)
            mark = ", the loader's" if share == HARDWARE_SHARE else ""
            yield _row(f"nvJPEG alone, {share:.0%} on decode engines{mark}", rate)


def loader_rates(
    dataset: Path,
    device: torch.device,
    batch_size: int,
    plan: WindowPlan,
    limits: Ceilings,
    backends: list[BackendName],
) -> Iterator[Row]:
    """Every way and dtype, with its share of the lowest ceiling above it."""
    encoding = load_manifest(dataset).encoding
    for backend in backends:
        names = ("nvjpeg",) if (backend, encoding) == ("dali", "jpeg") else ("bus", f"cpu {encoding}")
        ceiling = min((limits[name] for name in names if name in limits), default=None)
        for dtype in DTYPES:
            config = LoaderConfig(
                dataset=dataset, batch_size=batch_size, augment=augment_for(dtype), backend=backend, dtype=dtype
            )
            with create_loader(config, device, rank=0, world_size=1) as loader:
                rate = measure([LoaderProbe(loader)], plan, synchronize=lambda: wait_for(device))[0]
            share = "" if ceiling is None else f", {rate.images_per_second / ceiling:.2f} of its ceiling"
            row = _row(f"{encoding}, {_way(backend, encoding, device)}, {dtype}", rate, share)
            yield row | {"ceiling": ceiling}


def ten_view_rate(dataset: Path, device: torch.device, batch_size: int, plan: WindowPlan) -> Iterator[Row]:
    """The paper's ten views of each image, cut where the batch ends up, and that they are those of the CPU."""
    config = LoaderConfig(
        dataset=dataset, batch_size=batch_size, augment=AugmentConfig.ten_crop(), order="sequential", backend="cpu"
    )
    views = []
    for place in (device, torch.device("cpu")):
        with create_loader(replace(config, batch_size=8), place, rank=0, world_size=1) as loader:
            views.append(next(iter(loader)).images.cpu())
    same = torch.equal(*views)
    with create_loader(config, device, rank=0, world_size=1) as loader:
        rate = measure([LoaderProbe(loader)], plan, synchronize=lambda: wait_for(device))[0]
    row = _row(f"{load_manifest(dataset).encoding}, ten views, cut on the {device.type}", rate, f", exact: {same}")
    yield row | {"passed": same}


def automatic_choice(dataset: Path, device: torch.device, batch_size: int) -> Iterator[Row]:
    """What decode="auto" takes, measured afresh, and how long it thinks; then from memory."""
    before = os.environ.get("XDG_CACHE_HOME")
    with TemporaryDirectory(prefix="lmdali-gpu-check-") as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        try:
            for when in ("first", "again"):
                start = perf_counter()
                config = LoaderConfig(dataset=dataset, batch_size=batch_size)
                with create_loader(config, device, rank=0, world_size=1) as loader:
                    seconds = perf_counter() - start
                    result = f"{loader.backend_name} after {seconds:.1f} s: {loader.backend_reason}"
                yield {"what": f'decode="auto", {when}', "result": result, "passed": True, "seconds": seconds}
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _way(backend: BackendName, encoding: str, device: torch.device) -> str:
    place = "GPU" if device.type == "cuda" else "CPU"
    if backend == "cpu":
        return f"cpu backend, normalised on the {place}"
    return f"dali backend, {'fed pixels' if encoding == 'raw' else f'decoded on the {place}'}"


def _row(what: str, rate: Rate, more: str = "") -> Row:
    return {
        "what": what,
        "result": f"{rate.images_per_second:,.0f} images/s ± {rate.spread:.0%}{more}",
        "passed": True,
        "images_per_second": rate.images_per_second,
        "low": rate.low,
        "high": rate.high,
        "cpu_seconds_per_image": rate.cpu_seconds_per_image,
    }
