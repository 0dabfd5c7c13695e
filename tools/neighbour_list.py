"""What a search found, told with the keys and classes of the dataset that was searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmdali.model.exact_search import Neighbours
from lmdali.pipeline.dataset_place import Place, parse_place, place_manifest, place_shown
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.path_kind import is_dir
from lmdali.tools.record_pictures import record_rows
from lmdali.tools.report_table import print_table


def dataset_at(
    recorded: str, digest: str, given: Place | None, where: Path, *, cache_dir: Place | None = None
) -> Place | None:
    """The dataset that features or codes were made of; None where it is gone and nobody says where to.

    Args:
        recorded: where it was then.
        digest: its identity.
        given: where it is now, if it moved.
        where: the features or codes, for the message.
        cache_dir: for a dataset at an address, as of `LoaderConfig`.

    Raises:
        InputError: there is another dataset in that place, or none where `given` says.
    """
    place = given or parse_place(recorded)
    if given is None and isinstance(place, Path) and not is_dir(place):
        return None
    found = place_manifest(place, cache_dir=cache_dir).digest
    if found != digest:
        raise InputError(
            f"{where}: made of dataset {digest[:12]} ({recorded}), and {place_shown(place)} is {found[:12]}: say with "
            "--dataset where that one is, or make it again"
        )
    return place


def picture_recipe(
    recorded: str, digest: str, given: Place | None, where: Path, *, cache_dir: Place | None = None
) -> Mapping[str, Any]:
    """How a dataset made its pixels, by which pictures beside it are made, too; nothing where the dataset is gone.

    Args and errors are those of `dataset_at`.
    """
    place = dataset_at(recorded, digest, given, where, cache_dir=cache_dir)
    return {} if place is None else place_manifest(place, cache_dir=cache_dir).recipe


def describe_neighbours(
    dataset: Place | None, texts: Sequence[str], found: Neighbours, *, cache_dir: Place | None = None
) -> list[dict[str, Any]]:
    """For each query its neighbours as JSON: record, distance and, where the dataset is at hand, key and class."""
    described = []
    for text, indices, distances in zip(texts, found.indices.tolist(), found.distances.tolist(), strict=True):
        indices = [index for index in indices if index >= 0]
        neighbours = [
            {"record": index, "distance": distance, "key": None, "label": None, "class": None}
            for index, distance in zip(indices, distances, strict=False)
        ]
        if dataset is not None:
            names = place_manifest(dataset, cache_dir=cache_dir).class_names
            rows = record_rows(dataset, indices, cache_dir=cache_dir)
            for neighbour, (key, label) in zip(neighbours, rows, strict=True):
                neighbour.update({"key": key, "label": label, "class": names[label]})
        described.append({"query": text, "neighbours": neighbours})
    return described


def print_neighbours(described: Sequence[dict[str, Any]], unit: str) -> None:
    """A table for each query; `unit` heads the column of distances."""
    for entry in described:
        print_table(
            entry["query"],
            ("class", unit, "record", "key"),
            [
                (near["class"] or "", f"{near['distance']:.6g}", str(near["record"]), near["key"] or "")
                for near in entry["neighbours"]
            ],
        )
