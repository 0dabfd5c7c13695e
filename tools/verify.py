"""`lmdali verify`: a dataset's bytes against its manifest, or the pixels of one backend against another's."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from lmdali.pipeline.errors import IntegrityError, ThresholdError
from lmdali.tools.dataset_argument import DatasetArgument
from lmdali.tools.dataset_check import VerifyReport, verify_dataset
from lmdali.tools.report_table import print_json, print_pairs, print_table

_SHOWN_PROBLEMS = 20


@click.command("verify")
@click.argument("dataset", type=DatasetArgument("verify reads every byte of its files"))
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
    be: 0 for raw pixels, 1 for JPEG decoded by DALI on a CPU (a mean of 0.1), 2 more for resized windows (0.05), a mean
    of 1 for JPEG decoded on a GPU. The bias, a channel's mean beside its other one, is shown only.
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
            f"{dataset}: {len(report.problems)} problems in {len(places)} places, first: {report.problems[0]}; "
            "`lmdali repair` makes damaged files again"
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
            ("", "backend", "images", "largest", "allowed", "mean", "allowed", "bias"),
            [
                (
                    row.form,
                    row.backend,
                    f"{row.num_images:,}",
                    f"{row.largest:.3g}",
                    f"{row.largest_limit:.3g}",
                    f"{row.mean:.3g}",
                    f"{row.mean_limit:.3g}",
                    f"{row.bias:.3g}",
                )
                for row in rows
            ],
        )
    worst = next((row for row in rows if not row.passed), None)
    if worst is not None:
        raise ThresholdError(
            f"{dataset}: {worst.form} by {worst.backend} differ by up to {worst.largest:.3g} gray levels, "
            f"{worst.mean:.3g} on average; allowed are {worst.largest_limit:.3g} and {worst.mean_limit:.3g}: "
            "train with --backend cpu, and please report this"
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
