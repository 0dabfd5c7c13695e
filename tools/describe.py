"""`lmdali info`: what a dataset is, from its manifest and statistics alone."""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from lmdali.pipeline.dataset_place import Place, place_directory, place_manifest, place_shown
from lmdali.pipeline.eigenbasis import STATISTICS_FILE, load_eigenbasis
from lmdali.pipeline.manifest import FORMAT_VERSION, Manifest, load_manifest
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.tables import printable
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.loader_options import cache_dir_option
from lmdali.tools.report_table import megabytes, print_json, print_pairs

_SHOWN_CLASSES = 8


def dataset_facts(dataset: Place, *, cache_dir: Place | None = None) -> dict[str, Any]:
    """Facts about a dataset, JSON-able; `cache_dir` is for one at an address, as of `LoaderConfig`.

    Raises:
        InputError: not a finished dataset.
        IntegrityError: manifest or statistics are damaged.
    """
    directory = place_directory(dataset, cache_dir=cache_dir)
    manifest = load_manifest(directory)
    facts: dict[str, Any] = {
        "directory": place_shown(dataset),
        "digest": manifest.digest,
        "format_version": list(FORMAT_VERSION),
        "num_records": manifest.num_records,
        "num_rejected": manifest.num_rejected,
        "num_classes": len(manifest.class_names),
        "class_counts": dict(zip(manifest.class_names, manifest.class_counts, strict=True)),
        "image_size": manifest.image_size,
        "encoding": manifest.encoding,
        "num_shards": len(manifest.shards),
        "payload_bytes": manifest.payload_bytes,
        "file_bytes": manifest.file_bytes,
        "recipe": manifest.recipe,
        "source": manifest.source,
        "statistics": None,
    }
    if exists(directory / STATISTICS_FILE):
        basis = load_eigenbasis(directory)
        facts["statistics"] = {
            "mean": basis.mean.tolist(),
            "std": basis.std.tolist(),
            "unit_eigenvalues": basis.unit_eigenvalues.tolist(),
            "of_this_dataset": basis.dataset_digest == manifest.digest,
        }
    return facts


@click.command("info")
@click.argument("dataset", type=DATASET)
@cache_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(dataset: Place, cache_dir: Place | None, as_json: bool) -> None:
    """Say what DATASET holds. Reads no shard; `lmdali verify` does."""
    facts = dataset_facts(dataset, cache_dir=cache_dir)
    if as_json:
        print_json(facts)
        return
    manifest = place_manifest(dataset, cache_dir=cache_dir)
    recipe = manifest.recipe
    pairs: list[tuple[str, object]] = [
        ("records", f"{manifest.num_records:,} of {manifest.image_size} x {manifest.image_size} RGB, "
                    f"{manifest.encoding}" + (f" quality {recipe['quality']}" if recipe.get("quality") else "")),
        ("rejected", f"{manifest.num_rejected:,} sources"),
        ("classes", _classes(manifest)),
        ("shards", f"{len(manifest.shards)}, {megabytes(facts['file_bytes'])} on disk, "
                   f"{facts['payload_bytes'] / max(manifest.num_records, 1) / 1e3:.1f} kB an image"),
        ("orientation tag", f"{recipe.get('orientation')}"),
        ("decoder", f"{recipe.get('decoder')}"),
        ("source", f"{manifest.source.get('kind')}, fingerprint {str(manifest.source.get('fingerprint'))[:16]}"),
        ("digest", manifest.digest),
    ]  # fmt: skip
    if facts["statistics"] is None:
        pairs.append(("statistics", "missing: run `lmdali pca`"))
    else:
        pairs.append(("mean, gray levels", np.round(facts["statistics"]["mean"], 2).tolist()))
        pairs.append(("eigenvalues (0..1)", np.round(facts["statistics"]["unit_eigenvalues"], 5).tolist()))
    print_pairs(facts["directory"], pairs)


def _classes(manifest: Manifest) -> str:
    counts = sorted(manifest.class_counts)
    names = ", ".join(printable(name) for name in manifest.class_names[:_SHOWN_CLASSES])
    more = f", and {len(manifest.class_names) - _SHOWN_CLASSES} more" if len(counts) > _SHOWN_CLASSES else ""
    return f"{len(counts)}, with {counts[0]} to {counts[-1]} records each: {names}{more}"
