"""`lmdali audit`: duplicates within datasets and leaks between them, label conflicts, class balance, odd records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmdali.model.picture_file import check_suffix, save_picture
from lmdali.pipeline.dataset_place import Place, place_text
from lmdali.pipeline.errors import ConfigError, ThresholdError
from lmdali.pipeline.output_file import make_parents
from lmdali.pipeline.tables import DuplicateRow, write_rows
from lmdali.tools.audit_report import audit_facts, duplicate_rows, pairs_sheet, report_audit
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.duplicates import DISTANCE, find_duplicates
from lmdali.tools.hash_search import MAX_DISTANCE
from lmdali.tools.loader_options import cache_options
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.record_catalog import RecordCatalog
from lmdali.tools.report_table import print_json


@click.command("audit")
@click.argument("datasets", nargs=-1, required=True, type=DATASET, metavar="TRAIN [VAL]...")
@click.option(
    "--distance",
    type=click.IntRange(0, MAX_DISTANCE),
    default=DISTANCE,
    show_default=True,
    help="Bits in which the hashes of near pictures may differ.",
)
@click.option("--mirrored/--no-mirrored", default=True, show_default=True, help="Look for mirrored copies too.")
@click.option(
    "--max-leaks",
    type=click.IntRange(0),
    help="Records of a later dataset that may show a picture of an earlier one; more are exit code 9.",
)
@click.option("--out", type=OUTPUT_FILE, help="Parquet file to write: one row per pair.")
@click.option("--sheet", type=OUTPUT_FILE, help="Picture to draw of the first groups.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads.  [default: every usable CPU]")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    datasets: tuple[Place, ...],
    distance: int,
    mirrored: bool,
    max_leaks: int | None,
    out: Path | None,
    sheet: Path | None,
    workers: int | None,
    cache_dir: Place | None,
    cache_bytes: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Look for what spoils an experiment in TRAIN, and between it and other datasets, such as VAL.

    The same picture twice, as the same file, the same stored bytes, nearly the same or mirrored; in two datasets it is
    a leak, under two class names a conflict. Blank and enlarged pictures, empty classes, class lists that differ.
    Nothing is written to a dataset.
    """
    _check(datasets, out, sheet)
    cache: dict[str, Any] = {"cache_dir": cache_dir, "cache_bytes": cache_bytes}
    catalog = RecordCatalog(datasets, workers=workers, **cache, quiet=quiet)
    try:
        found = find_duplicates(catalog, distance=distance, mirrored=mirrored, workers=workers, quiet=quiet)
        if out is not None:
            make_parents(out)
            write_rows(out, DuplicateRow, duplicate_rows(catalog, found))
        if sheet is not None and found.pairs:
            save_picture(pairs_sheet(catalog, found), sheet)
    finally:
        catalog.close()
    facts = audit_facts(catalog, found)
    if as_json:
        print_json(facts)
    else:
        report_audit(facts)
        if sheet is not None and not found.pairs:
            click.echo(f"{sheet}: not drawn, there are no duplicates")
    leaks = facts["duplicates"]["leaks"]
    if max_leaks is not None and leaks > max_leaks:
        raise ThresholdError(
            f"{leaks} records show pictures of an earlier dataset, --max-leaks allows {max_leaks}: "
            "remove their sources and convert again; --out lists them"
        )


def _check(datasets: tuple[Place, ...], out: Path | None, sheet: Path | None) -> None:
    places = [dataset.resolve() for dataset in datasets if isinstance(dataset, Path)]
    if len({place_text(dataset) for dataset in datasets}) < len(datasets):
        raise ConfigError("a dataset is named twice: every record of it would be a leak: name it once")
    if sheet is not None:
        check_suffix(sheet)
    for target in (out, sheet):
        inside = next((place for place in places if target and target.resolve().is_relative_to(place)), None)
        if inside is not None:
            raise ConfigError(f"{target}: lies in the dataset {inside}, which holds its own files only: choose another")
