"""What an audit says: facts as JSON, as tables, as rows for a file, and as a sheet of pictures to judge by eye."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.dataset_place import place_shown
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.tables import DuplicateRow, printable
from lmdali.tools.contact_sheet import Tile, draw_sheet
from lmdali.tools.conversion_report import count_oddities
from lmdali.tools.duplicates import KINDS, DuplicatePair, Duplicates, find_duplicates
from lmdali.tools.record_catalog import RecordCatalog
from lmdali.tools.report_table import print_pairs, print_table

_SHOWN_GROUPS = 10
_SHOWN_MEMBERS = 20
_SHEET_PAIRS = 18
_SHEET_COLUMNS = 6


def audit_facts(catalog: RecordCatalog, found: Duplicates) -> dict[str, Any]:
    """Everything that was found but the single pairs, JSON-able."""
    sources = catalog.sources({number for group in found.groups[:_SHOWN_GROUPS] for number in group[:_SHOWN_MEMBERS]})
    return {
        "datasets": [_dataset_facts(catalog, dataset) for dataset in range(len(catalog.places))],
        "class_lists": [_class_list(catalog, dataset) for dataset in range(1, len(catalog.places))],
        "duplicates": _duplicate_counts(catalog, found),
        "first_groups": [
            {
                "size": len(group),
                "classes": class_names(catalog, group),
                "records": [
                    {
                        "dataset": place_shown(catalog.places[catalog.dataset_of(number)]),
                        "record": catalog.locate(number)[1],
                        "source": sources[number],
                        "class": printable(catalog.class_name(number)),
                    }
                    for number in group[:_SHOWN_MEMBERS]
                ],
            }
            for group in found.groups[:_SHOWN_GROUPS]
        ],
    }


def duplicate_facts(dataset: Path, *, workers: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """How many duplicates a dataset has within it, JSON-able; nothing is written.

    Raises:
        LmdaliError: not a dataset, or one that is damaged.
    """
    with closing(RecordCatalog([dataset], workers=workers, quiet=quiet)) as catalog:
        return _duplicate_counts(catalog, find_duplicates(catalog, workers=workers, quiet=quiet))


def _duplicate_counts(catalog: RecordCatalog, found: Duplicates) -> dict[str, Any]:
    kinds = Counter(pair.kind for pair in found.pairs)
    return {
        "pairs": {kind: kinds[kind] for kind in KINDS},
        "groups": len(found.groups),
        "records": sum(map(len, found.groups)),
        "leaking_groups": sum(len(catalog.datasets_of(group)) > 1 for group in found.groups),
        "leaks": sum(len(leaked_records(catalog, group)) for group in found.groups),
        "label_conflicts": sum(len(class_names(catalog, group)) > 1 for group in found.groups),
        "candidates": found.num_candidates,
        "crowded": found.num_crowded,
    }


def leaked_records(catalog: RecordCatalog, group: tuple[int, ...]) -> list[int]:
    """Records of a group that are not of the first of its datasets: what should not be there."""
    first = catalog.dataset_of(group[0])
    return [number for number in group if catalog.dataset_of(number) != first]


def class_names(catalog: RecordCatalog, group: tuple[int, ...]) -> list[str]:
    """Classes that the records of a group have, by name; more than one is a conflict."""
    return sorted({printable(catalog.class_name(number)) for number in group})


def duplicate_rows(catalog: RecordCatalog, found: Duplicates) -> list[DuplicateRow]:
    """The pairs, group by group."""
    group_of = {number: place for place, group in enumerate(found.groups) for number in group}
    sources = catalog.sources(group_of)
    rows = []
    for pair in sorted(found.pairs, key=lambda pair: (group_of[pair.first], pair.first, pair.second)):
        (dataset, record), (other_dataset, other_record) = _place(catalog, pair.first), _place(catalog, pair.second)
        rows.append(
            DuplicateRow(
                group=group_of[pair.first],
                kind=pair.kind,
                dataset=dataset,
                record=record,
                source=sources[pair.first],
                class_name=printable(catalog.class_name(pair.first)),
                other_dataset=other_dataset,
                other_record=other_record,
                other_source=sources[pair.second],
                other_class_name=printable(catalog.class_name(pair.second)),
                hash_distance=pair.hash_distance,
                pixel_difference=pair.difference,
                correlation=pair.correlation,
            )
        )
    return rows


def pairs_sheet(catalog: RecordCatalog, found: Duplicates) -> NDArray[np.uint8]:
    """The first groups, two pictures of each side by side; leaks come first.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    side = max(manifest.image_size for manifest in catalog.manifests)
    tiles = []
    for group in found.groups[:_SHEET_PAIRS]:
        pair = _telling_pair(catalog, found, group)
        for number in (pair.first, pair.second):
            name, record = _place(catalog, number)
            caption, note = printable(catalog.class_name(number)), f"{printable(name)} #{record}   {pair.kind}"
            tiles.append(Tile(_picture(catalog, number, side), caption, note))
    shown = len(tiles) // 2
    return draw_sheet(
        tiles,
        columns=_SHEET_COLUMNS,
        title="Duplicates",
        detail=f"{shown} of {len(found.groups)} groups, two of each, leaks first",
    )


def report_audit(facts: dict[str, Any]) -> None:
    """Show an audit on stdout."""
    for dataset in facts["datasets"]:
        print_pairs(dataset["dataset"], _dataset_lines(dataset))
    for classes in facts["class_lists"]:
        if not classes["same"]:
            print_pairs(f"{classes['dataset']}: other classes than {classes['compared_with']}", _class_lines(classes))
    found = facts["duplicates"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["pairs"].items() if count)
    conflicts = found["label_conflicts"]
    lines: list[tuple[str, object]] = [
        ("leaks", f"{found['leaks']} records show pictures of an earlier dataset" if found["leaks"] else "none"),
        (
            "label conflicts",
            f"groups with several class names: {conflicts}" if conflicts else "none",
        ),
        ("groups", f"{found['groups']} of {found['records']} records" if found["groups"] else "none"),
        ("pairs", f"{kinds or 'none'}; {found['candidates']} had near hashes"),
    ]
    if found["crowded"]:
        lines.append(("crowded", f"{found['crowded']} hashes share a part with too many: near pairs may be missing"))
    print_pairs("duplicates", lines)
    if facts["first_groups"]:
        rows = [
            (f"{place}", f"{record['dataset']} #{record['record']}", record["source"], record["class"])
            for place, group in enumerate(facts["first_groups"])
            for record in group["records"]
        ]
        print_table("the first groups, leaks before others", ("group", "record", "source", "class"), rows)


def _dataset_facts(catalog: RecordCatalog, dataset: int) -> dict[str, Any]:
    manifest = catalog.manifests[dataset]
    filled = [count for count in manifest.class_counts if count]
    records = slice(int(catalog.first[dataset]), int(catalog.first[dataset + 1]))
    names = zip(manifest.class_names, manifest.class_counts, strict=True)
    return {
        "dataset": place_shown(catalog.places[dataset]),
        "digest": manifest.digest,
        "records": manifest.num_records,
        "classes": len(manifest.class_names),
        "empty_classes": [printable(name) for name, count in names if count == 0],
        "smallest_class": min(filled, default=0),
        "largest_class": max(filled, default=0),
        "oddities": dict(count_oddities(catalog.directories[dataset]).most_common()),
        "blank": int(catalog.is_blank[records].sum()),
        "hashes": "kept" if not catalog.was_hashed[dataset] else "computed",
    }


def _class_list(catalog: RecordCatalog, dataset: int) -> dict[str, Any]:
    """How the classes of a dataset differ from those of the first."""
    first, other = catalog.manifests[0].class_names, catalog.manifests[dataset].class_names
    return {
        "dataset": place_shown(catalog.places[dataset]),
        "compared_with": place_shown(catalog.places[0]),
        "same": first == other,
        "missing": sorted(printable(name) for name in set(first) - set(other)),
        "added": sorted(printable(name) for name in set(other) - set(first)),
        "moved": sum(a != b for a, b in zip(first, other, strict=False)) if set(first) == set(other) else None,
    }


def _dataset_lines(dataset: dict[str, Any]) -> list[tuple[str, object]]:
    empty = dataset["empty_classes"]
    smallest, largest = dataset["smallest_class"], dataset["largest_class"]
    ratio = f", {largest / smallest:.1f} : 1" if smallest else ""
    # Datasets of older versions do not name blank records among the oddities: the count of this run is for all.
    oddities = {name: count for name, count in dataset["oddities"].items() if name != "blank"}
    if dataset["blank"]:
        oddities["blank"] = dataset["blank"]
    return [
        ("records", f"{dataset['records']:,} in {dataset['classes']} classes"),
        ("balance", f"{smallest} to {largest} records a class{ratio}"),
        ("empty classes", _some(empty) or "none"),
        ("unusual", ", ".join(f"{count} {name}" for name, count in oddities.items()) or "none"),
        ("hashes", dataset["hashes"]),
    ]


def _class_lines(classes: dict[str, Any]) -> list[tuple[str, object]]:
    lines = [("missing", _some(classes["missing"])), ("added", _some(classes["added"]))]
    moved = f"{classes['moved']} classes have another number" if classes["moved"] else ""
    return [(name, text) for name, text in [*lines, ("order", moved)] if text]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_GROUPS])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > _SHOWN_GROUPS else "") if names else ""


def _place(catalog: RecordCatalog, number: int) -> tuple[str, int]:
    return place_shown(catalog.places[catalog.dataset_of(number)]), catalog.locate(number)[1]


def _telling_pair(catalog: RecordCatalog, found: Duplicates, group: tuple[int, ...]) -> DuplicatePair:
    """The first pair of a group that spans datasets, or the first."""
    members = set(group)
    pairs = [pair for pair in found.pairs if pair.first in members]
    return min(pairs, key=lambda pair: len(catalog.datasets_of((pair.first, pair.second))) == 1)


def _picture(catalog: RecordCatalog, number: int, side: int) -> NDArray[np.uint8]:
    """A stored picture; a smaller one of another dataset on black, so that all are of one size."""
    reader, index = catalog.locate(number)
    size = reader.manifest.image_size
    picture = np.zeros((side, side, 3), np.uint8)
    picture[:size, :size] = reader.read(index, lambda record: decode_stored(record.data, size).copy())
    return picture
