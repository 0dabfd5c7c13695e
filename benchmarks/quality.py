"""JPEG quality 85, 90, 95 and raw pixels side by side: bytes, PSNR, decode rate and loader rate, for users to choose.

    python benchmarks/quality.py SOURCE [--qualities 85,90,95] [--size 256] [--seconds 5] [--rounds 5] [--threads N]
                                 [--batch-size 128] [--json FILE]

SOURCE is an image folder as `lmdali convert` takes it; it is converted once per row into a temporary folder. PSNR is
against the resized pixels, over all pixels and channels of an image; the table has the mean over images of each
image's PSNR. Rates are medians of interleaved windows in this one process: decoding alone is libjpeg-turbo with the
accurate IDCT (for raw records: a memory copy) on files in memory, and the loader is the CPU backend with a warm cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_walk import iterate_lmdb
from lmdali.tools.ceilings import copy_probe, decode_probe, sample_records
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Probe, WindowPlan, measure
from lmdali.tools.report_table import print_table
from lmdali.tools.sources import open_source
from lmdali.tools.step_probes import LoaderProbe

_MIN_BATCHES = 8
FORMS: dict[str, dict[str, Any]] = {
    "uint8": {"dtype": "uint8", "layout": "NHWC", "augment": AugmentConfig.pixels()},
    "float32": {"augment": AugmentConfig.paper()},
}


def convert_all(source: Path, folder: Path, qualities: Sequence[int], size: int) -> dict[str, Path]:
    """One dataset per row: "JPEG 85", ..., "raw"."""
    configs = {f"JPEG {quality}": ConvertConfig(size=size, quality=quality) for quality in qualities}
    datasets = {}
    for name, config in (configs | {"raw": ConvertConfig(size=size, encoding="raw")}).items():
        print(f"convert: {name}", file=sys.stderr, flush=True)
        datasets[name] = folder / name.replace(" ", "")
        convert(open_source(source), datasets[name], config, quiet=True)
    return datasets


def mean_psnr(dataset: Path, resized: dict[bytes, NDArray[np.uint8]]) -> float:
    """Mean over images of the PSNR of each, dB.

    Args:
        dataset: JPEG records.
        resized: pixels before encoding, by record key.
    """
    values = []
    for key, pixels in stored_pixels(dataset):
        error = np.mean((pixels.astype(np.float64) - resized[key]) ** 2)
        if error > 0:  # an image of one colour may come back as it was
            values.append(10 * np.log10(255.0**2 / error))
    return float(np.mean(values))


def stored_pixels(dataset: Path) -> Iterator[tuple[bytes, NDArray[np.uint8]]]:
    """Key and pixels of every record."""
    reader = ShardReader(dataset, load_manifest(dataset))
    for shard in reader.manifest.shards:
        for key, record in iterate_lmdb(reader.data_file(shard.name).parent):
            yield key, decode_stored(record.data, reader.manifest.image_size).copy()


def measure_rates(
    datasets: dict[str, Path], plan: WindowPlan, *, num_threads: int, batch_size: int
) -> dict[str, dict[str, Any]]:
    """Rates of decoding alone and of the loader in both forms, for each dataset, all interleaved."""
    probes: dict[tuple[str, str], Probe] = {}
    with ExitStack() as stack:
        for name, dataset in datasets.items():
            manifest, sample = load_manifest(dataset), sample_records(dataset)
            make = copy_probe if manifest.encoding == "raw" else decode_probe
            probes[name, "decode"] = make(sample, manifest.image_size, num_threads=num_threads)
            batch = min(batch_size, max(manifest.num_records // _MIN_BATCHES, 1))
            for form, options in FORMS.items():
                config = LoaderConfig(
                    dataset=dataset, batch_size=batch, backend="cpu", num_threads=num_threads, **options
                )
                loader = stack.enter_context(create_loader(config, rank=0, world_size=1))
                probes[name, form] = LoaderProbe(loader)
        rates = measure(list(probes.values()), plan)
    found: dict[str, dict[str, Any]] = {name: {} for name in datasets}
    for (name, part), rate in zip(probes, rates, strict=True):
        found[name][part] = asdict(rate)
    return found


def compare(
    source: Path, folder: Path, qualities: Sequence[int], size: int, plan: WindowPlan, **loader: int
) -> dict[str, dict[str, Any]]:
    """All rows by name."""
    datasets = convert_all(source, folder, qualities, size)
    resized = dict(stored_pixels(datasets["raw"]))
    rows = measure_rates(datasets, plan, num_threads=loader["num_threads"], batch_size=loader["batch_size"])
    for name, dataset in datasets.items():
        manifest = load_manifest(dataset)
        rows[name]["bytes_per_image"] = manifest.mean_record_bytes
        rows[name]["psnr_db"] = None if name == "raw" else mean_psnr(dataset, resized)
        rows[name]["num_records"] = manifest.num_records
    return rows


def print_rows(rows: dict[str, dict[str, Any]], title: str) -> None:
    """The table."""
    rates = ("decode only/s", "CPU ms", "uint8 NHWC/s", "CPU ms", "float32 paper/s", "CPU ms")
    cells = []
    for name, row in rows.items():
        psnr = "exact" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        line = [name, f"{row['bytes_per_image'] / 1e3:.1f}", psnr]
        for part in ("decode", *FORMS):
            line += [f"{row[part]['images_per_second']:,.0f}", f"{1e3 * row[part]['cpu_seconds_per_image']:.3f}"]
        cells.append(line)
    print_table(title, ("", "kB/image", "PSNR, dB", *rates), cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, convert, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--qualities", default="85,90,95")
    parser.add_argument("--size", type=int, default=256, help="pixels; at least the 224 of a crop")
    parser.add_argument("--seconds", type=float, default=5.0, help="per figure, all rounds together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--batch-size", type=int, default=128, help="less where an epoch would not have 8 batches")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    machine = machine_facts(torch.device("cpu"))
    try:
        qualities = [int(part) for part in options.qualities.split(",")]
        plan = WindowPlan(seconds=options.seconds, windows=options.rounds)
        with TemporaryDirectory(prefix="lmdali-quality-") as folder:
            rows = compare(
                options.source,
                Path(folder),
                qualities,
                options.size,
                plan,
                num_threads=options.threads,
                batch_size=options.batch_size,
            )
    except (LmdaliError, ValueError) as error:
        raise SystemExit(f"quality.py: {error}") from None
    count = rows["raw"]["num_records"]
    print_rows(rows, f"{count} images, {options.size} pixels, {options.threads} threads, {machine['cpu']}")
    if options.json is not None:
        document = {"num_threads": options.threads, "size": options.size, "machine": machine, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
