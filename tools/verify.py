"""`lmdali verify`: a dataset's bytes against its manifest, or the pixels of one backend against another's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from time import perf_counter

import click

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.decode import decode_stored
from lmdali.pipeline.eigenbasis import STATISTICS_FILE, load_moments
from lmdali.pipeline.errors import IntegrityError, LmdaliError, RecordError, ShardError, ThresholdError
from lmdali.pipeline.files import file_sha256
from lmdali.pipeline.manifest import SHARDS_DIRECTORY, Manifest, ShardInfo, load_manifest
from lmdali.pipeline.records import Record, key_prefix
from lmdali.pipeline.shard_header import DATA_FILE, check_size
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_walk import iterate_lmdb, kept_offsets_fit
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json, print_pairs, print_table

_SHOWN_PROBLEMS = 20


@dataclass
class VerifyReport:
    """What was checked and what is wrong.

    Attributes:
        num_records: records read.
        num_shards: shards checked.
        file_bytes: bytes of the shards.
        seconds: wall time.
        problems: one line each: where and what.
    """

    num_records: int = 0
    num_shards: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def verify_dataset(
    directory: Path, *, decode: bool = True, workers: int | None = None, quiet: bool = False
) -> VerifyReport:
    """Check sizes, hashes, keys, places, labels and CRCs of every record, and decode each.

    Args:
        directory: a dataset.
        decode: also decode every image; without it the check runs at disk speed.
        workers: threads; None means every CPU this process may use.
        quiet: no progress.

    Raises:
        InputError: not a finished dataset.
        ManifestError: the manifest itself cannot be trusted.
    """
    manifest = load_manifest(directory)
    report, lock, start = VerifyReport(), Lock(), perf_counter()
    with progress_bar("verify", manifest.num_records, quiet=quiet) as progress:

        def count() -> None:
            with lock:
                report.num_records += 1
            progress(report.num_records)

        def check(info: ShardInfo) -> None:
            problems = _check_shard(directory, manifest, info, count, decode=decode)
            with lock:
                report.problems += problems
                report.num_shards += 1
                report.file_bytes += info.file_bytes

        with ThreadPoolExecutor(workers or usable_cpus()) as pool:
            list(pool.map(check, manifest.shards))
    report.problems += _check_side_files(directory, manifest)
    report.problems.sort()
    report.seconds = perf_counter() - start
    return report


def _check_shard(
    directory: Path, manifest: Manifest, info: ShardInfo, count: Callable[[], None], *, decode: bool
) -> list[str]:
    path = directory / SHARDS_DIRECTORY / info.name / DATA_FILE
    where = f"shard {info.name}"
    try:
        check_size(path, expected_bytes=info.file_bytes, expected_entries=info.num_records)
        intact = file_sha256(path) == info.sha256
    except (ShardError, OSError) as error:
        return [f"{where}: {error}"]
    problems = [] if intact else [f"{where}: sha256 differs from the manifest's"]
    try:
        for row, (key, record) in enumerate(iterate_lmdb(path.parent)):
            problem = _check_record(manifest, info, row, key, record, decode=decode)
            if problem:
                problems.append(f"{where}, row {row}, key {key.decode('utf-8', 'backslashreplace')}: {problem}")
            count()
        if not kept_offsets_fit(path.parent, info):
            problems.append(
                f"{where}: {OFFSETS_FILE} does not say what {DATA_FILE} says: delete it, loaders do without"
            )
    except LmdaliError as error:  # a damaged page stops LMDB's iteration: the rest of this shard is unknown
        problems.append(f"{where}: {error}")
    return problems


def _check_record(
    manifest: Manifest, info: ShardInfo, row: int, key: bytes, record: Record, *, decode: bool
) -> str | None:
    if not key.startswith(key_prefix(info.position(row))):
        return f"expected key {key_prefix(info.position(row)).decode()}..."
    if not 0 <= record.label < len(manifest.class_names):
        return f"label {record.label} is outside 0..{len(manifest.class_names) - 1}"
    if not record.is_intact:
        return "CRC-32C of its image differs from the stored one"
    if decode:
        try:
            decode_stored(record.data, manifest.image_size)
        except RecordError as error:
            return str(error)
    return None


def _check_side_files(directory: Path, manifest: Manifest) -> list[str]:
    problems = []
    for name, digest in manifest.tables.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif file_sha256(path) != digest:
            problems.append(f"{name}: sha256 differs from the manifest's")
    try:
        if load_moments(directory)[1] != manifest.digest:
            problems.append(f"{STATISTICS_FILE}: belongs to another dataset: run `lmdali pca --recompute`")
    except LmdaliError as error:
        problems.append(str(error))
    return problems


@click.command("verify")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--decode/--no-decode", default=True, show_default=True, help="Also decode every image.")
@click.option("--parity", is_flag=True, help="Compare the pixels of the cpu and dali backends instead.")
@click.option("--device", default="cpu", show_default=True, help="With --parity: where dali runs, cpu or cuda:N.")
@click.option("--batches", type=click.IntRange(1), default=8, show_default=True, help="With --parity: 32 images each.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads.  [default: every usable CPU]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    dataset: Path,
    decode: bool,
    parity: bool,
    device: str,
    batches: int,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check every byte of DATASET: sizes, hashes, keys, labels, CRCs, and that each image decodes.

    The exit code is 5 where anything is wrong.

    With --parity no bytes are checked. The same batches are made by both backends, whole stored images and augmented
    ones, and the largest and mean difference is shown in gray levels; the exit code is 9 where it is larger than it may
    be: 0 for raw pixels, 1 for JPEG decoded by DALI on a CPU, a mean of 1 for JPEG decoded on a GPU.
    """
    if parity:
        _parity(dataset, device, batches, workers, as_json=as_json)
        return
    report = verify_dataset(dataset, decode=decode, workers=workers, quiet=quiet)
    if as_json:
        print_json(asdict(report))
    else:
        _report(report, dataset)
    if report.problems:
        places = Counter(problem.split(",")[0].split(":")[0] for problem in report.problems)
        raise IntegrityError(
            f"{dataset}: {len(report.problems)} problems in {len(places)} places, first: {report.problems[0]}"
        )


def _parity(dataset: Path, device: str, batches: int, workers: int | None, *, as_json: bool) -> None:
    # Here, and not above: checking bytes needs no torch.
    from lmdali.pipeline.parity import compare_backends

    rows = list(compare_backends(dataset, device=device, num_batches=batches, num_threads=workers))
    if as_json:
        # JSON has no infinity: null is a largest difference that is not judged.
        tables = [asdict(row) | {"passed": row.passed} for row in rows]
        print_json({"parity": [{k: None if v == math.inf else v for k, v in table.items()} for table in tables]})
    else:
        print_table(
            f"{dataset}: differences to cpu on cpu, gray levels",
            ("", "backend", "images", "largest", "allowed", "mean", "allowed"),
            [
                (
                    row.form,
                    row.backend,
                    f"{row.num_images:,}",
                    f"{row.largest:.3g}",
                    f"{row.largest_limit:.3g}",
                    f"{row.mean:.3g}",
                    f"{row.mean_limit:.3g}",
                )
                for row in rows
            ],
        )
    worst = next((row for row in rows if not row.passed), None)
    if worst is not None:
        raise ThresholdError(
            f"{dataset}: {worst.form} by {worst.backend} differ by up to {worst.largest:.3g} gray levels, "
            f"{worst.mean:.3g} on average; allowed are {worst.largest_limit:.3g} and {worst.mean_limit:.3g}"
        )


def _report(report: VerifyReport, dataset: Path) -> None:
    rate = report.num_records / max(report.seconds, 1e-9)
    print_pairs(
        str(dataset),
        [
            ("checked", f"{report.num_records:,} records in {report.num_shards} shards, {rate:,.0f} records/s"),
            ("problems", len(report.problems) or "none"),
        ],
    )
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        click.echo(problem)
    if len(report.problems) > _SHOWN_PROBLEMS:
        click.echo(f"... and {len(report.problems) - _SHOWN_PROBLEMS} more: --json lists all")
