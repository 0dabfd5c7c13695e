"""`lmdali figure neighbours`: figure 4, right, of the paper for any feature file, and the pixels' opinion of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from lmdali.model.exact_search import Neighbours
from lmdali.model.features_file import Features, load_features
from lmdali.model.neighbour_figure import Picture, draw_neighbours
from lmdali.model.picture_file import check_suffix, save_picture
from lmdali.model.pixel_order import PixelOrder, order_by_pixels
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.dataset_place import Place, place_manifest, place_shown
from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.files import write_json
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.loader_options import cache_options
from lmdali.tools.neighbour_list import dataset_at, describe_neighbours
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.progress import progress_bar
from lmdali.tools.readable_names import readable_classes
from lmdali.tools.record_pictures import RecordPictures, central_crop, read_records, spread_indices
from lmdali.tools.report_table import print_json
from lmdali.tools.search import SearchConfig, nearest_records
from lmdali.tools.search_queries import Queries, query_options, resolve_queries

_CROP_SIZE = 224
_QUERIES = 5
_LEGEND = "pixels: part of the dataset that is nearer to the query in raw pixels"


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(SearchConfig):
    """How to draw, and what `SearchConfig` says of the search.

    Attributes:
        query_dataset: where the dataset of `queries` is; None means where it was.
        names: synset file, see `readable_classes`.
        cache_bytes: of the cache for datasets at an address, as of `LoaderConfig`.
        pixels: compare with pixel distances, which reads every image of the dataset once.
        quiet: no progress.
    """

    query_dataset: Place | None = None
    names: Path | None = None
    cache_bytes: int | None = None
    pixels: bool = True
    quiet: bool = False


def figure_neighbours(
    directory: Path, texts: Sequence[str], out: Path, config: NeighboursConfig | None = None
) -> dict[str, Any]:
    """Draw queries beside their nearest records, and write where these stand in the order of pixel distance.

    Args:
        directory: feature file that is searched.
        texts: record numbers or picture files; without any, five records at even distances.
        out: picture to write; keys, distances and percentiles go beside it as JSON.
        config: see `NeighboursConfig`.

    Returns:
        The JSON document.

    Raises:
        ConfigError: a record that is not there, or no format for `out`.
        InputError: a dataset is not at hand, or something is of another model or dataset.
        IntegrityError: a file or dataset is damaged.
    """
    config = config or NeighboursConfig()
    check_suffix(out)
    features = load_features(directory)
    asked = features if config.queries is None else load_features(config.queries)
    dataset = _require_dataset(features, config.dataset, config)
    manifest = place_manifest(dataset, cache_dir=config.cache_dir)
    readable = readable_classes(manifest.class_names, config.names)
    texts = texts or [str(index) for index in spread_indices(_QUERIES, len(asked))]
    queries = resolve_queries(features, texts, asked, config)
    query_facts, query_pixels = _query_pictures(asked, dataset if asked is features else None, queries, config)
    found = nearest_records(features, queries, config).in_all()
    if not found.indices.shape[1]:
        raise InputError(f"{directory}: its only record is the query, so there is no neighbour to draw")
    order = _pixel_order(dataset, query_pixels, found, queries, config) if config.pixels else None
    described = describe_neighbours(dataset, queries.texts, found, cache_dir=config.cache_dir)
    for entry, facts, row in zip(described, query_facts, range(len(texts)), strict=True):
        entry.update(facts)
        for place, neighbour in enumerate(entry["neighbours"]):
            neighbour["name"] = readable[neighbour["label"]]
            neighbour["pixel_distance"] = None if order is None else float(order.distances[row, place])
            neighbour["pixel_percentile"] = None if order is None else float(order.percentiles[row, place])
    save_picture(_draw(dataset, described, query_pixels, found, config), out)
    document = {
        "figure": "neighbours",
        "features": str(directory),
        "features_digest": features.digest,
        "dataset": place_shown(dataset),
        "mean_pixel_percentile": None if order is None else float(order.percentiles.mean()),
        "queries": described,
    }
    write_json(out.with_suffix(".json"), document)
    return document


def _require_dataset(features: Features, given: Place | None, config: NeighboursConfig) -> Place:
    plan, where = features.plan, features.directory
    place = dataset_at(plan.dataset, plan.dataset_digest, given, where, cache_dir=config.cache_dir)
    if place is None:
        raise InputError(
            f"{features.plan.dataset}: the dataset of {features.directory} is no longer there, and its pictures are "
            "needed: say where it is with --dataset (that of --queries with --query-dataset)"
        )
    return place


def _query_pictures(
    asked: Features, dataset: Place | None, queries: Queries, config: NeighboursConfig
) -> tuple[list[dict[str, Any]], Pixels]:
    """Key and class of each query, where it has any, and `(Q, S, S, 3)` crops."""
    unknown: dict[str, Any] = {"key": None, "label": None, "class": None}
    facts = [unknown | {"name": Path(text).name} for text in queries.texts]
    pictures = dict(queries.pictures)
    places = [place for place in range(len(queries.texts)) if place not in pictures]
    if places:
        dataset = dataset or _require_dataset(asked, config.query_dataset, config)
        records = _records(dataset, [int(queries.texts[place]) for place in places], config)
        classes = records.manifest.class_names
        readable = readable_classes(classes, config.names)
        for place, pixels, label, key in zip(places, records.pixels, records.labels, records.keys, strict=True):
            pictures[place] = pixels
            facts[place] = {"key": key, "label": label, "class": classes[label], "name": readable[label]}
    sides = {len(pixels) for pixels in pictures.values()}
    if len(sides) > 1:
        raise InputError(f"queries of {min(sides)} and {max(sides)} pixels: ask for records and pictures separately")
    return facts, _crops(np.stack([pictures[place] for place in range(len(queries.texts))]))


def _records(dataset: Place, indices: Sequence[int], config: NeighboursConfig) -> RecordPictures:
    return read_records(dataset, indices, cache_dir=config.cache_dir, cache_bytes=config.cache_bytes)


def _crops(pixels: Pixels) -> Pixels:
    return central_crop(pixels, min(_CROP_SIZE, pixels.shape[1]))


def _pixel_order(
    dataset: Place, query_pixels: Pixels, found: Neighbours, queries: Queries, config: NeighboursConfig
) -> PixelOrder:
    manifest = place_manifest(dataset, cache_dir=config.cache_dir)
    size = min(_CROP_SIZE, manifest.image_size)
    loader_config = LoaderConfig(
        dataset=dataset,
        augment=AugmentConfig(crop="center", crop_size=size, flip=False, normalize="none", lighting="none"),
        order="sequential",
        dtype="uint8",
        layout="NHWC",
        cache_dir=None if config.cache_dir is None else str(config.cache_dir),
        cache_bytes=config.cache_bytes,
    )
    with (
        create_loader(loader_config, rank=0, world_size=1) as loader,
        progress_bar("pixels", manifest.num_records, quiet=config.quiet) as progress,
    ):
        return order_by_pixels(loader, query_pixels, found.indices, queries.own, on_progress=progress)


def _draw(
    dataset: Place, described: list[dict[str, Any]], query_pixels: Pixels, found: Neighbours, config: NeighboursConfig
) -> Pixels:
    rows = []
    for entry, pixels, indices in zip(described, query_pixels, found.indices, strict=True):
        crops = _crops(_records(dataset, indices.tolist(), config).pixels)
        neighbours = [
            Picture(crop, near["name"], _note(near)) for crop, near in zip(crops, entry["neighbours"], strict=True)
        ]
        note = f"record {entry['query']}" if entry["key"] is not None else "picture"
        rows.append((Picture(pixels, entry["name"], note), neighbours))
    return draw_neighbours(
        rows, legend=_LEGEND if described[0]["neighbours"][0]["pixel_percentile"] is not None else ""
    )


def _note(near: dict[str, Any]) -> str:
    note = f"distance {near['distance']:.3g}"
    return note if near["pixel_percentile"] is None else f"{note}, pixels {near['pixel_percentile']:.0f} %"


@click.command("neighbours")
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1)
@click.option("--out", type=OUTPUT_FILE, required=True, help="Picture to write: .png, .jpg or .webp; and .json.")
@click.option(
    "-k",
    "--count",
    type=click.IntRange(1, 20),
    default=NeighboursConfig.count,
    show_default=True,
    help="Neighbours of each.",
)
@query_options
@click.option("--query-dataset", type=DATASET, help="The dataset of --queries.")
@click.option("--names", type=click.Path(path_type=Path), help="Synset file: lines of CLASS NAME, SYNONYM, ...")
@cache_options
@click.option("--pixels/--no-pixels", default=True, show_default=True, help="Compare with distances of raw pixels.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def neighbours_command(features: Path, query: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Draw each QUERY beside the records of FEATURES that are nearest to it (figure 4, right).

    QUERY is a record number or a picture file; without any, five records at even distances are taken. The percentile
    under a neighbour says how much of the dataset is nearer to the query in raw pixels: 0 is the nearest of all, about
    50 is what chance would give. Keys, distances and percentiles go into a JSON file beside the picture.
    """
    document = figure_neighbours(features, query, out, NeighboursConfig(**options))
    if as_json:
        print_json(document)
        return
    mean = document["mean_pixel_percentile"]
    pixels = "" if mean is None else f", at pixel percentile {mean:.1f} on average"
    print(f"{out}: {len(document['queries'])} queries, {len(document['queries'][0]['neighbours'])} neighbours{pixels}")
