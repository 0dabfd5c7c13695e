"""The files of a dataset beside the shards' records: what each must agree with, and what of it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE, describe, load_moments, solve
from lmdali.pipeline.errors import IntegrityError, LmdaliError
from lmdali.pipeline.files import file_sha256, is_as_written, read_sealed
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, Manifest, ShardInfo
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.shard_figures import SHARD_FILE, ShardFigures

_CHECKED_NUMBERS = ("mean", "std", "covariance", "eigenvalues", "eigenvalue_roots")
"""Not the eigenvectors: where eigenvalues are equal, another machine may find others, as good."""


def manifest_problems(directory: Path) -> list[str]:
    """Changes to `manifest.json` that its digest cannot see: white space, and fields named twice."""
    if is_as_written(directory / MANIFEST_FILE):
        return []
    return [f"{MANIFEST_FILE}: its content is right, but not written as we do: it was edited"]


def damaged_tables(directory: Path, manifest: Manifest) -> dict[str, str]:
    """What is wrong with each table that is not as the manifest says: name -> problem."""
    found = {}
    for name, digest in manifest.tables.items():
        path = directory / name
        if not is_file(path):
            found[name] = "missing"
        elif file_sha256(path) != digest:
            found[name] = "sha256 differs from the manifest's"
    return found


def checked_figures(directory: Path, manifest: Manifest, info: ShardInfo) -> ShardFigures:
    """A shard's `shard.json`, which says what the manifest says.

    Raises:
        IntegrityError: it is missing, damaged, or of another shard or dataset.
    """
    shard = directory / SHARDS_DIRECTORY / info.name
    figures = ShardFigures.load(shard)
    if figures.info != info or figures.plan != manifest.source.get("plan"):
        raise IntegrityError(f"{shard / SHARD_FILE}: does not say what {MANIFEST_FILE} says")
    if figures.moments.num_images != info.num_records:
        raise IntegrityError(f"{shard / SHARD_FILE}: moments of {figures.moments.num_images} images")
    return figures


def statistics_problems(directory: Path, manifest: Manifest, total: Moments | None) -> list[str]:
    """What is wrong with `statistics.json` and `mean.npy`.

    Args:
        directory: the dataset.
        manifest: its manifest.
        total: moments of all shards, or None where some `shard.json` cannot be trusted.
    """
    path = directory / STATISTICS_FILE
    try:
        moments, digest = load_moments(directory)
        if digest != manifest.digest:
            return [f"{STATISTICS_FILE}: belongs to another dataset: run `lmdali pca --recompute`"]
        document = read_sealed(path)
        problems = []
        if total is not None and moments.to_json() != total.to_json():
            problems.append(f"{STATISTICS_FILE}: its moments are not the sums of those in every {SHARD_FILE}")
        sums = moments.image_sums
        if sums is None or not np.array_equal(sums.sum(axis=(0, 1)), moments.sums):
            problems.append(f"{MEAN_FILE}: does not add up to the sums in {STATISTICS_FILE}")
        fresh = describe(solve(moments, digest), moments)
        if document.keys() - {"digest", "mean_image"} != fresh.keys():
            problems.append(f"{STATISTICS_FILE}: fields are missing or too many")
        elif not all(np.allclose(document[key], fresh[key], rtol=1e-6, atol=1e-6) for key in _CHECKED_NUMBERS):
            problems.append(f"{STATISTICS_FILE}: its numbers do not follow from its moments: run `lmdali pca`")
    except (TypeError, ValueError) as error:
        return [f"{STATISTICS_FILE}: {error!r}: the file is damaged"]
    except LmdaliError as error:
        return [str(error)]
    return problems
