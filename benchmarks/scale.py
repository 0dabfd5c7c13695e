"""What a dataset's size costs: opening, resuming, tables, order, descriptors; and a billion records on paper.

    python benchmarks/scale.py [--records N ...] [--shards N] [--runs 5] [--scratch FOLDER] [--json]

Datasets are made in a temporary folder, of ImageNet's 1,281,167 records and of 14 million unless told otherwise, with
1,000 classes, 0.1 % of the sources rejected, and shards of 11,600 records. One more has `--shards` small shards.

Real: every shard is an LMDB that `ShardWriter` wrote, with its keys, tree, checksums and offsets; every record is there
and can be read, and those that are read have checksum and label compared. Manifests and statistics have full size.
Simulated: a picture is 2x2 raw pixels. A hole brings each file to the size it would have with photographs (22,000 bytes
a record), so what is mapped has its real extent; 14 million records then take 1.5 GB of disk. Opening is measured
through a manifest that says 256x256 JPEG, reading through one that says what is there. Shard hashes are invented.

Every figure comes from fresh processes. Imports are counted apart; before batches are read, a small dataset was. The
median of the times and the largest memory are shown. Files are in the page cache. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from scale_dataset import STORED_BYTES, Case, make_dataset
from scale_paper import BILLION, paper_rows
from scale_probe import MAX_DESCRIPTORS

from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import megabytes, print_table

_IMAGENET, _IMAGENET_21K = 1_281_167, 14_197_122
_RECORDS_PER_SHARD = 256_000_000 // STORED_BYTES
_RECORDS_PER_SMALL_SHARD = 100
_PROBE = Path(__file__).with_name("scale_probe.py")

MAX_OPENING_SECONDS, MAX_OPENING_BYTES, MAX_RESUME_SECONDS = 0.5, 150e6, 0.2


class Line(NamedTuple):
    """One row of the table.

    Attributes:
        what: measured quantity.
        target: in words; empty where nobody set one.
        measured: with its unit.
        passed: None where there is no target.
    """

    what: str
    target: str
    measured: str
    passed: bool | None


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def probe(name: str, folder: Path, warm_up: Path, runs: int) -> dict[str, Any]:
    """Run one probe in fresh processes: medians of times and rates, and the most of everything else.

    Raises:
        SystemExit: it failed; its own error is on stderr.
    """
    answers: list[dict[str, Any]] = []
    for _ in range(runs):
        command = [sys.executable, str(_PROBE), name, str(folder), str(warm_up)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{folder}: the probe {name!r} ended with code {done.returncode}: see its error above")
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        key: (median if key.endswith(("seconds", "per_second")) else max)(answer[key] for answer in answers)
        for key in answers[0]
    }


def measure_size(num_records: int, scratch: Path, warm_up: Path, runs: int) -> dict[str, Any]:
    """Make a dataset, measure it, remove it."""
    case = Case(num_records=num_records, num_shards=math.ceil(num_records / _RECORDS_PER_SHARD))
    with TemporaryDirectory(dir=scratch) as folder:
        directory = Path(folder) / "dataset"
        say(f"writing {num_records:,} records in {case.num_shards:,} shards")
        make_dataset(directory, case)
        say("measuring")
        return {
            "records": num_records,
            "shards": case.num_shards,
            "opening": probe("opening", directory, warm_up, runs),
            "resume": probe("resume", directory, warm_up, runs),
            "order": probe("order", directory / "full_size", warm_up, runs),
        }


def measure_shards(num_shards: int, scratch: Path, warm_up: Path) -> dict[str, Any]:
    """An epoch of many small shards under a limit of file descriptors."""
    case = Case(num_records=num_shards * _RECORDS_PER_SMALL_SHARD, num_shards=num_shards)
    with TemporaryDirectory(dir=scratch) as folder:
        directory = Path(folder) / "dataset"
        say(f"writing {num_shards:,} shards")
        make_dataset(directory, case)
        return probe("descriptors", directory, warm_up, 1) | {"shards": num_shards}


def measure_billion(scratch: Path, warm_up: Path, runs: int) -> dict[str, Any]:
    """The parts of a billion records that need no record: the manifest and the order."""
    case = Case(num_records=BILLION, num_shards=math.ceil(BILLION / _RECORDS_PER_SHARD))
    with TemporaryDirectory(dir=scratch) as folder:
        say("writing the manifest of a billion records")
        case.manifest(case.shards()).save(Path(folder))
        return {name: probe(name, Path(folder), warm_up, runs) for name in ("manifest", "order")}


def size_lines(measured: dict[str, Any]) -> list[Line]:
    """Rows for one number of records. The targets are for ImageNet's; more records are held to them as well."""
    opening, resume, order = measured["opening"], measured["resume"], measured["order"]
    tables = f"{megabytes(resume['table_bytes'])}, {resume['table_bytes'] / measured['records']:.1f} bytes/record"
    imports = f"{opening['import_seconds']:.2f} s, {megabytes(opening['imported_bytes'])}"
    return [
        Line(f"{measured['records']:,} records, {measured['shards']:,} shards", "", "", None),
        _below("  opening", opening["seconds"], MAX_OPENING_SECONDS),
        Line(
            "  memory for that, peak",
            f"< {megabytes(MAX_OPENING_BYTES)}",
            megabytes(opening["memory_bytes"]),
            opening["memory_bytes"] < MAX_OPENING_BYTES,
        ),
        _below("  resume in mid-epoch, batches planned", resume["seconds"], MAX_RESUME_SECONDS),
        _below("  ... and the first batch read", resume["first_batch_seconds"], MAX_RESUME_SECONDS),
        Line("      CPU time for that, all threads", "", f"{resume['first_batch_cpu_seconds']:.3f} s", None),
        Line("  imports before all that", "", imports, None),
        Line("  manifest.json", "", f"{opening['manifest_bytes'] / 1e3:,.0f} kB", None),
        Line("  mapping every shard", "", f"{resume['map_all_seconds']:.3f} s", None),
        Line("  tables once all are mapped", "", tables, None),
        Line("  look-ups of records", "", f"{resume['lookups_per_second'] / 1e6:.1f} million/s", None),
        Line("  order", "", f"{order['order_samples_per_second'] / 1e6:.1f} million samples/s", None),
        Line("  order, draws, digest", "", f"{order['digest_samples_per_second'] / 1e6:.1f} million samples/s", None),
    ]


def _below(what: str, seconds: float, most: float) -> Line:
    return Line(what, f"< {most} s", f"{seconds:.3f} s", seconds < most)


def shard_lines(measured: dict[str, Any]) -> list[Line]:
    """Rows for many shards under the limit of file descriptors."""
    found = f"{measured['samples']:,} samples, {measured['mapped_shards']:,} shards mapped"
    works = measured["complete"] and measured["mapped_shards"] == measured["shards"]
    return [
        Line(f"{measured['shards']:,} shards, a whole epoch", "", "", None),
        Line(f"  under a limit of {MAX_DESCRIPTORS} file descriptors", "all of it", found, works),
        Line("  most that were open", "", f"{measured['most_open']}", None),
    ]


def print_lines(lines: Sequence[Line], cpu: str) -> None:
    """The table with its verdicts."""
    words = {None: "", True: "pass", False: "FAIL"}
    print_table(
        f"scale, {cpu}",
        ("", "target", "measured", ""),
        [(line.what, line.target, line.measured, words[line.passed]) for line in lines],
    )


def main() -> None:
    """Parse, measure, print. Exits with 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[_IMAGENET, _IMAGENET_21K])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes per figure")
    parser.add_argument("--scratch", type=Path, help="where datasets are made; the system's temporary folder")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        warm_up = scratch / "warm-up"
        make_dataset(warm_up, Case(num_records=1024, num_shards=2))
        sizes = [measure_size(count, scratch, warm_up, arguments.runs) for count in arguments.records]
        shards = measure_shards(arguments.shards, scratch, warm_up)
        billion = measure_billion(scratch, warm_up, arguments.runs)
    lines = [line for measured in sizes for line in size_lines(measured)] + shard_lines(shards)
    machine = machine_facts(torch.device("cpu"))
    if not arguments.json:
        print_lines(lines, machine["cpu"])
        print_table(
            f"a billion records on paper (* measured; the rest from {max(arguments.records):,} records)",
            ("", "grows with", "at a billion", "limit or remedy"),
            paper_rows(max(sizes, key=lambda size: int(size["records"])), billion),
        )
    passed = all(line.passed is not False for line in lines)
    document = {"machine": machine, "sizes": sizes, "shards": shards, "billion": billion, "passed": passed}
    print(json.dumps(document, allow_nan=False))
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
