"""`lmdali codes compare`: codes and faiss beside the exact search: precision, by class too, time per query, a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from lmdali.model.code_figure import save_code_plot
from lmdali.model.code_quality import SearchQuality, measure_codes, measure_exact, measure_faiss
from lmdali.model.codes_file import Codes, load_codes
from lmdali.model.features_file import Features, load_features
from lmdali.model.picture_file import check_suffix
from lmdali.pipeline.dataset_place import Place, place_directory
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.files import write_json
from lmdali.pipeline.manifest import RECORDS_FILE, load_manifest
from lmdali.pipeline.table_reader import read_integers
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.feature_encoder import PIXELS
from lmdali.tools.loader_options import cache_dir_option
from lmdali.tools.neighbour_list import dataset_at
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.record_pictures import spread_indices
from lmdali.tools.report_table import print_json, print_table


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ways to search one dataset.

    Attributes:
        k: neighbours of each query.
        searches: the exact search first, then faiss, then codes of features, then of pixels, short codes first.
        class_names: by label.
    """

    k: int
    searches: tuple[SearchQuality, ...]
    class_names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


def compare_codes(
    directory: Path,
    codes: Sequence[Path],
    *,
    k: int = 10,
    num_queries: int = 200,
    with_faiss: bool = False,
    dataset: Place | None = None,
    cache_dir: Place | None = None,
) -> Comparison:
    """Search features exactly and codes by Hamming distance, for some records of their own.

    Args:
        directory: feature file, whose exact neighbours are the truth.
        codes: of the same dataset, made from these features or from others, such as pixels.
        k: neighbours of each query.
        num_queries: records at even distances, at most all.
        with_faiss: also search the features with faiss.
        dataset: where the dataset is; None means where it was.
        cache_dir: for a dataset at an address, as of `LoaderConfig`.

    Raises:
        ConfigError: k or the number of queries is too small, or there are not so many neighbours.
        InputError: no such file, codes of another dataset, or the dataset is gone.
        IntegrityError: a file is damaged.
        MissingExtraError: faiss was asked for and is not installed.
    """
    if k < 1 or num_queries < 1:
        raise ConfigError(f"k and the number of queries must be at least 1, found {k} and {num_queries}")
    features, opened = load_features(directory), [load_codes(path) for path in codes]
    for one in opened:
        _require_same_dataset(features, one)
    plan = features.plan
    if k >= len(features):
        raise ConfigError(f"k is {k}, and a record of {directory} has {len(features) - 1} others: give a smaller -k")
    place = dataset_at(plan.dataset, plan.dataset_digest, dataset, directory, cache_dir=cache_dir)
    if place is None:
        raise InputError(f"{plan.dataset}: the dataset is no longer there, and its labels are needed: give --dataset")
    home = place_directory(place, tables=True, cache_dir=cache_dir)
    labels = read_integers(home / RECORDS_FILE, "label")
    queries = np.array(spread_indices(num_queries, len(features)), np.int64)
    exact, quality = measure_exact(features, queries, k, labels)
    opened.sort(key=lambda one: (one.info.source == PIXELS, one.info.bits))
    measured = [measure_codes(one, queries, exact, labels, from_pixels=one.info.source == PIXELS) for one in opened]
    beside = [measure_faiss(features, queries, exact, labels)] if with_faiss else []
    names = tuple(load_manifest(home).class_names)
    return Comparison(k=k, searches=(quality, *beside, *measured), class_names=names)


def _require_same_dataset(features: Features, codes: Codes) -> None:
    if codes.info.dataset_digest != features.plan.dataset_digest:
        raise InputError(
            f"{codes.directory}: codes of dataset {codes.info.dataset_digest[:12]}, and {features.directory} are "
            f"features of {features.plan.dataset_digest[:12]}: both must be of one dataset"
        )


@click.command("compare")
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("codes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Neighbours of each query.")
@click.option("--num-queries", type=click.IntRange(1), default=200, show_default=True, help="At even distances.")
@click.option("--faiss", "with_faiss", is_flag=True, help="Also search FEATURES with faiss, an extra.")
@click.option("--by-class", is_flag=True, help="Also a table of label precision by class.")
@click.option("--dataset", type=DATASET, help="Where the dataset is.  [default: where it was]")
@cache_dir_option
@click.option("--out", type=OUTPUT_FILE, help="Picture to draw of bits and precision; and .json.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def compare_command(
    features: Path,
    codes: tuple[Path, ...],
    k: int,
    num_queries: int,
    with_faiss: bool,
    by_class: bool,
    dataset: Place | None,
    cache_dir: Place | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare searching CODES with searching FEATURES exactly.

    CODES are of the same dataset, made from these features or from others (`lmdali features DATASET pixels OUT`).
    Precision is the part of the neighbours by code that is among the exact ones; label precision the part that has the
    query's label. The time is that of one query by itself.
    """
    if out is not None:
        check_suffix(out)
    where: dict[str, Any] = {"dataset": dataset, "cache_dir": cache_dir}
    found = compare_codes(features, codes, k=k, num_queries=num_queries, with_faiss=with_faiss, **where)
    document = {"features": str(features), **found.to_json()}
    if out is not None:
        save_code_plot(found.searches, k, out)
        write_json(out.with_suffix(".json"), document)
    if as_json:
        print_json(document)
        return
    print_table(
        str(features),
        ("search", f"precision@{k}", f"label precision@{k}", "ms per query", "bytes per record"),
        [
            (
                quality.name,
                f"{quality.precision:.3f}",
                f"{quality.label_precision:.3f}",
                f"{quality.ms_per_query:.3g}",
                f"{quality.bytes_per_record:,.0f}",
            )
            for quality in found.searches
        ],
    )
    if by_class:
        print_table(
            f"label precision@{k} of the queries of each class",
            ("class", *(quality.name for quality in found.searches)),
            class_rows(found),
        )


def class_rows(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each class with queries: its name, and its precision by each way to search."""
    columns = [quality.class_precision for quality in found.searches]
    return [
        (name, *("" if value is None else f"{value:.3f}" for value in values))
        for name, *values in zip(found.class_names, *columns, strict=False)
        if any(value is not None for value in values)
    ]
