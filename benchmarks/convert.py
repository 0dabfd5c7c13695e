"""lmdali's conversion beside the sum of its parts, and beside other people's converters: whole jobs on files.

    python benchmarks/convert.py SOURCE [--converters all|own|KEY,...] [--copies 12] [--first 1] [--rounds 3]
                                 [--workers N] [--quality 90] [--size 256] [--json FILE]

SOURCE is a folder of class folders of JPEGs; it is copied into a scratch folder FIRST times for a small job, and FIRST
+ COPIES times for a large one, so that it lasts. Each converter runs in a process of its own, alone on the machine,
files in the page cache, with the same number of workers. Its figure is *marginal*: the time for the large job minus
that for the small one, so that starting Python and importing are in nobody's figure; CPU time, that of all its
processes, in the same way. Medians over rounds, which go there and back. "Parts" are the library calls alone, decode,
resize, encode and decode back, in as many processes, with the source files in memory and the results thrown away; their
filters are OpenCV's and torch's. lmdali has compiled ones, with the same bytes, from 8,192 pictures for each CPU on:
with so many in the small job, loading them is in neither. PSNR is of the stored JPEG against Pillow's Lanczos filter of
the same window. Packages: benchmarks/converters/requirements.txt. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from convert_quality import mean_psnr
from converters import CONVERTERS, Converter, Job
from converters.part_processes import PARTS, part_times

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import print_table

_PROGRAM = Path(__file__).with_name("convert_run.py")
_QUALITY_FILES = 120
"""Pictures that PSNR and the parts' times are measured on; spread over the source."""


def copy_source(source: Path, target: Path, copies: int) -> int:
    """Fill class folders with so many copies of each file; returns how many files that are."""
    count = 0
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir()):
            for number in range(copies):
                shutil.copy(path, target / folder.name / f"{path.stem}_{number}{path.suffix}")
                count += 1
    return count


def run_job(converter: Converter, job: Job) -> dict[str, float]:
    """Wall and CPU seconds of one job; raises RuntimeError with its last line where it fails."""
    shutil.rmtree(job.out, ignore_errors=True)
    with Path(f"{job.out}.log").open("wb") as log:
        begin = perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), converter.key, job.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(_PROGRAM.parent)},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(job.out, ignore_errors=True)
    if process.returncode != 0:
        lines = [line for line in Path(f"{job.out}.log").read_text(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(f"ended with code {process.returncode}: {lines[-1][:150] if lines else 'no output'}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def run_rounds(
    chosen: Sequence[Converter], jobs: tuple[Job, Job], extra: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Marginal figures of every converter: medians over rounds, and the lowest and highest rate.

    Args:
        chosen: who takes part.
        jobs: the small and the large one.
        extra: pictures that the large one has more.
        rounds: of all of them.
    """
    found: dict[str, list[tuple[float, float]]] = {converter.key: [] for converter in chosen}
    errors: dict[str, str] = {}
    for number in range(rounds):
        for converter in chosen if number % 2 == 0 else reversed(chosen):
            if converter.key in errors:
                continue
            try:
                small, large = (run_job(converter, job) for job in jobs)
            except RuntimeError as error:
                errors[converter.key] = str(error)
                continue
            wall, cpu = (large[part] - small[part] for part in ("seconds", "cpu_seconds"))
            found[converter.key].append((extra / wall, cpu / extra))
            print(f"round {number + 1} {converter.key}: {extra / wall:,.0f} images/s", file=sys.stderr, flush=True)
    rows: dict[str, dict[str, Any]] = {key: {"error": error} for key, error in errors.items()}
    for key, values in found.items():
        if key not in errors:
            rates = [rate for rate, _ in values]
            rows[key] = {
                "images_per_second": statistics.median(rates),
                "images_per_second_low": min(rates),
                "images_per_second_high": max(rates),
                "cpu_seconds_per_image": statistics.median([cpu for _, cpu in values]),
            }
    return rows


def compare(options: argparse.Namespace, scratch: Path, chosen: Sequence[Converter]) -> dict[str, Any]:
    """Everything; the JSON document."""
    small, large = scratch / "one", scratch / "many"
    few, many = (
        copy_source(options.source, folder, copies)
        for folder, copies in ((small, options.first), (large, options.first + options.copies))
    )
    out = {"out": str(scratch / "out"), "workers": options.workers, "size": options.size, "quality": options.quality}
    jobs = Job(source=str(small), **out), Job(source=str(large), **out)
    rows = run_rounds(chosen, jobs, many - few, options.rounds)
    paths = [path for path, _ in jobs[0].files()][:: options.first]  # each picture once
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // _QUALITY_FILES)]]
    for converter in chosen:
        if "error" not in rows[converter.key]:
            rows[converter.key]["psnr_db"] = mean_psnr(converter, files, jobs[0])
    part_rounds = {
        name: [part_times(files, jobs[0], name) for _ in range(options.rounds)] for name in ("area", "bicubic")
    }
    parts = {
        name: {part: statistics.median(found[part] for found in rounds) for part in PARTS}
        for name, rounds in part_rounds.items()
    }
    return {
        "machine": machine_facts(torch.device("cpu")),
        "workers": options.workers,
        "size": options.size,
        "quality": options.quality,
        "num_images": many - few,
        "rounds": options.rounds,
        "rows": rows,
        "parts": parts,
    }


def print_document(document: dict[str, Any], chosen: Sequence[Converter]) -> None:
    """The two tables, and who could not run."""
    rows = document["rows"]
    measured = [converter for converter in chosen if "error" not in rows[converter.key]]
    cells = []
    for converter in sorted(measured, key=lambda converter: -rows[converter.key]["images_per_second"]):
        row, parts = rows[converter.key], rows.get(f"parts-{converter.key}", {})
        cells.append(
            [
                converter.label,
                f"{row['images_per_second']:,.0f}",
                f"{row['images_per_second_low']:,.0f}-{row['images_per_second_high']:,.0f}",
                f"{1e3 * row['cpu_seconds_per_image']:.2f}",
                f"{parts['cpu_seconds_per_image'] / row['cpu_seconds_per_image']:.2f}"
                if "error" not in parts and parts
                else "",
                f"{row['psnr_db']:.1f}",
            ]
        )
    print_table(
        f"{document['num_images']:,} JPEGs -> {document['size']} pixels, quality {document['quality']}, "
        f"{document['workers']} workers, {document['machine']['cpu']}, {document['rounds']} rounds",
        ("", "images/s", "range", "CPU ms/image", "CPU of its parts", "PSNR, dB"),
        cells,
    )
    print_table(
        "parts alone, one thread, CPU ms/image",
        ("", *PARTS, "sum"),
        [
            [name, *(f"{1e3 * parts[part]:.3f}" for part in PARTS), f"{1e3 * sum(parts.values()):.2f}"]
            for name, parts in document["parts"].items()
        ],
    )
    failed = [(converter.label, rows[converter.key]["error"]) for converter in chosen if "error" in rows[converter.key]]
    if failed:
        print_table("not measured", ("", "why"), failed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, convert, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--converters", default="all", help="all, own, or names with commas between them")
    parser.add_argument("--copies", type=int, default=12)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=usable_cpus())
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    keys = [converter.key for converter in CONVERTERS]
    own = [converter.key for converter in CONVERTERS if not converter.is_peer]
    wanted = {"all": keys, "own": own}.get(options.converters, options.converters.split(","))
    unknown = sorted(set(wanted) - set(keys))
    if (
        unknown
        or not options.source.is_dir()
        or min(options.copies, options.first, options.rounds, options.workers) < 1
    ):
        raise SystemExit(
            f"convert.py: {options.source} must be a folder, numbers at least 1, and converters among {', '.join(keys)}"
        )
    chosen = [converter for converter in CONVERTERS if converter.key in wanted]
    with TemporaryDirectory(prefix="lmdali-convert-") as scratch:
        document = compare(options, Path(scratch), chosen)
    print_document(document, chosen)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
