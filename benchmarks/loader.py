"""The CPU loader beside what its threads could decode (or, for raw records, copy) at most, in one run.

    python benchmarks/loader.py DATASET [--threads N] [--batch-size 128] [--seconds 5] [--windows 9]

Every round measures each contestant once, so a machine that changes its pace changes it for all of them; ratios are
medians over the rounds. On a machine that others use as well, compare CPU time per image instead. The ceiling is
simplejpeg with the accurate IDCT on files in memory, into reused buffers, with as many threads. The last line of the
output is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.ceilings import copy_probe, decode_probe, read_probe, sample_records
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Probe, Rate, WindowPlan, measure
from lmdali.tools.report_table import print_table
from lmdali.tools.step_probes import LoaderProbe

VARIANTS: dict[str, dict[str, Any]] = {
    "loader uint8 NHWC, crop and flip": {"dtype": "uint8", "layout": "NHWC", "augment": AugmentConfig.pixels()},
    "loader float32 NCHW, mean and lighting": {"augment": AugmentConfig.paper()},
}


def run_benchmark(dataset: Path, plan: WindowPlan, *, num_threads: int, batch_size: int) -> dict[str, Rate]:
    """Rates by name; the first is the ceiling."""
    manifest = load_manifest(dataset)
    sample = sample_records(dataset)
    raw = manifest.encoding == "raw"
    ceiling = (copy_probe if raw else decode_probe)(sample, manifest.image_size, num_threads=num_threads)
    probes: dict[str, Probe] = {
        "memcpy only" if raw else "decode only": ceiling,
        "LMDB read only": read_probe(dataset, num_threads=num_threads),
    }
    with ExitStack() as stack:
        for name, form in VARIANTS.items():
            config = LoaderConfig(
                dataset=dataset, batch_size=batch_size, backend="cpu", num_threads=num_threads, **form
            )
            loader = stack.enter_context(create_loader(config, rank=0, world_size=1))
            if len(loader) <= config.prefetch:
                raise SystemExit(f"{dataset}: an epoch has {len(loader)} batches: lower --batch-size")
            probes[name] = LoaderProbe(loader, config.prefetch)
        rates = measure(list(probes.values()), plan)
    return dict(zip(probes, rates, strict=True))


def ratios(rates: Mapping[str, Rate]) -> dict[str, float]:
    """Each rate over the first one, round by round."""
    limit = next(iter(rates.values())).per_window
    return {
        name: median(mine / of_limit for mine, of_limit in zip(rate.per_window, limit, strict=True))
        for name, rate in rates.items()
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="per contestant")
    parser.add_argument("--windows", type=int, default=9)
    arguments = parser.parse_args()
    plan = WindowPlan(seconds=arguments.seconds, windows=arguments.windows)
    try:
        rates = run_benchmark(arguments.dataset, plan, num_threads=arguments.threads, batch_size=arguments.batch_size)
    except LmdaliError as error:
        raise SystemExit(str(error)) from None
    shares, limit = ratios(rates), next(iter(rates.values()))
    machine = machine_facts(torch.device("cpu"))
    print_table(
        f"{arguments.dataset}, {arguments.threads} threads, batch {arguments.batch_size}, {machine['cpu']}",
        ("", "images/s", "spread", "of the limit", "CPU ms/image", "limit's CPU over this"),
        [
            (
                name,
                f"{rate.images_per_second:,.0f}",
                f"± {rate.spread:.0%}",
                f"{shares[name]:.2f}",
                f"{1e3 * rate.cpu_seconds_per_image:.3f}",
                f"{limit.cpu_seconds_per_image / rate.cpu_seconds_per_image:.2f}",
            )
            for name, rate in rates.items()
        ],
    )
    document = {name: asdict(rate) | {"ratio": shares[name]} for name, rate in rates.items()}
    print(json.dumps({"dataset": str(arguments.dataset), "machine": machine, "rates": document}, allow_nan=False))


if __name__ == "__main__":
    main()
