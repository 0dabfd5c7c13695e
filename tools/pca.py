"""`lmdali pca`: mean, mean image and RGB covariance eigenbasis of datasets, from exact integer moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_place import Place, place_directory, place_shown
from lmdali.pipeline.decode import decode_source
from lmdali.pipeline.eigenbasis import STATISTICS_FILE, Eigenbasis, describe, load_moments, save_statistics, solve
from lmdali.pipeline.errors import InputError, RecordError
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, load_manifest
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.output_check import try_to_write
from lmdali.pipeline.output_file import make_parents
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.pipeline.records import Record
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.shard_header import DATA_FILE, read_header
from lmdali.pipeline.shard_walk import iterate_lmdb
from lmdali.tools.caffe_lmdb import image_file
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.loader_options import cache_dir_option
from lmdali.tools.output_argument import OUTPUT_DIRECTORY
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json, print_pairs, print_table

PUBLISHED_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
PUBLISHED_EIGENVECTORS = np.array([[0.5675, 0.7192, 0.4009], [0.5808, -0.0045, -0.8140], [0.5836, -0.6948, 0.4203]])
"""The ImageNet constants that went from fb.resnet.torch into most training scripts: RGB, pixels scaled to 0..1."""

_CHUNK = 64


def dataset_moments(
    dataset: Place, *, recompute: bool = False, cache_dir: Place | None = None, quiet: bool = False
) -> tuple[Moments, str]:
    """Moments of a dataset of ours or of a plain Caffe LMDB, and the manifest digest ("" for the latter).

    Args:
        dataset: directory or address of one, or a directory with a `data.mdb`.
        recompute: decode every record even where `statistics.json` has the moments.
        cache_dir: for a dataset at an address, as of `LoaderConfig`.
        quiet: no progress.

    Raises:
        InputError: neither a dataset nor an LMDB directory.
        IntegrityError: a shard or record is damaged.
    """
    directory = place_directory(dataset, cache_dir=cache_dir)
    if exists(directory / MANIFEST_FILE) or exists(directory / SHARDS_DIRECTORY):
        manifest = load_manifest(directory)
        if not recompute and exists(directory / STATISTICS_FILE):
            moments, digest = load_moments(directory)
            if digest != manifest.digest:
                raise InputError(f"{directory / STATISTICS_FILE}: belongs to another dataset: add --recompute")
            return moments, digest
        if not isinstance(dataset, Path):
            shown = place_shown(dataset)
            raise InputError(
                f"{shown}: its statistics are missing, or to be computed again, which reads every record: bring it "
                f"here with `lmdali stage {shown} DIR`, and give DIR"
            )
        parts = [directory / SHARDS_DIRECTORY / shard.name for shard in manifest.shards]
        return count_moments(parts, manifest.num_records, quiet=quiet), manifest.digest
    if exists(directory / DATA_FILE):
        return count_moments([directory], read_header(directory / DATA_FILE).num_entries, quiet=quiet), ""
    if not is_dir(directory):
        load_manifest(directory)  # which says what is there instead
    raise InputError(
        f"{directory}: neither a dataset ({MANIFEST_FILE}) nor an LMDB directory ({DATA_FILE}): give what "
        "`lmdali convert` made"
    )


def angles_degrees(basis: Eigenbasis) -> NDArray[np.float64]:
    """(3,) angle between each eigenvector and the published one, degrees."""
    cosines = np.abs((basis.eigenvectors * PUBLISHED_EIGENVECTORS).sum(axis=0))
    norms = np.linalg.norm(PUBLISHED_EIGENVECTORS, axis=0)
    return np.asarray(np.degrees(np.arccos(np.clip(cosines / norms, 0.0, 1.0))))


def count_moments(parts: list[Path], total: int, *, quiet: bool) -> Moments:
    """Moments of every record of some LMDB directories; threads share the work, integer sums do not mind the order.

    Args:
        parts: directories with a `data.mdb`.
        total: records in all, for the bar.
        quiet: no progress.

    Raises:
        IntegrityError: a shard or record is damaged.
    """
    result: Moments | None = None
    with progress_bar("pca", total, quiet=quiet) as progress, ThreadPoolExecutor(usable_cpus()) as pool:
        for part in parts:
            chunks = _chunks(iterate_lmdb(part))
            while batch := list(islice(chunks, usable_cpus())):
                for moments in pool.map(_chunk_moments, batch):
                    if result is None:
                        result = moments
                    else:
                        result.merge(moments)
                    progress(result.num_images)
    return result if result is not None else Moments.zero()


def _chunks(records: Iterable[tuple[bytes, Record]]) -> Iterator[list[tuple[bytes, Record]]]:
    # The mapped bytes stay valid until the iteration over this shard ends, which is after its last chunk is done.
    iterator = iter(records)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _chunk_moments(chunk: list[tuple[bytes, Record]]) -> Moments:
    total: Moments | None = None
    for key, record in chunk:
        try:
            pixels = decode_source(image_file(record)).pixels
        except SourceRejected as error:
            raise RecordError(f"record {key.decode('utf-8', 'backslashreplace')}: {error}") from error
        if total is None:
            total = Moments.zero(*pixels.shape[:2])
        elif total.image_sums is not None and total.image_sums.shape != pixels.shape:
            total.image_sums = None
        total.add_image(pixels)
    assert total is not None
    return total


@click.command("pca")
@click.argument("datasets", nargs=-1, required=True, type=DATASET)
@click.option("--out", type=OUTPUT_DIRECTORY, help="Directory to write statistics.json and mean.npy to.")
@click.option("--recompute", is_flag=True, help="Decode every record instead of reading the stored moments.")
@cache_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    datasets: tuple[Place, ...],
    out: Path | None,
    recompute: bool,
    cache_dir: Place | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Mean and RGB covariance eigenbasis of one or more DATASETS together.

    A DATASET is a directory made by `lmdali convert`, or any Caffe LMDB directory. With one dataset of ours whose
    statistics are missing, or with --recompute, they are written into it; --out writes them elsewhere.
    """
    own = datasets[0] if out is None and len(datasets) == 1 else None
    completed = own if isinstance(own, Path) and _lacks_statistics(own, recompute) else None
    if completed is not None:
        try_to_write(completed)
    found = [dataset_moments(each, recompute=recompute, cache_dir=cache_dir, quiet=quiet) for each in datasets]
    total, digest = found[0]
    for moments, _ in found[1:]:
        total.merge(moments)
    digest = digest if len(datasets) == 1 else ""
    basis = solve(total, digest)
    if out is not None:
        make_parents(out / STATISTICS_FILE)
        save_statistics(out, total, digest)
    elif completed is not None:
        save_statistics(completed, total, digest)
    if as_json:
        print_json({**describe(basis, total), "angles_to_published_degrees": angles_degrees(basis).tolist()})
    else:
        _report(basis, total, datasets)


def _lacks_statistics(directory: Path, recompute: bool) -> bool:
    """Whether a dataset of ours gets new ones; a plain LMDB gets none."""
    return exists(directory / MANIFEST_FILE) and (recompute or not exists(directory / STATISTICS_FILE))


def _report(basis: Eigenbasis, moments: Moments, datasets: tuple[Place, ...]) -> None:
    names = ", ".join(map(place_shown, datasets))
    per_channel = "  ".join(f"{c} {m:.2f} ± {s:.2f}" for c, m, s in zip("RGB", basis.mean, basis.std, strict=True))
    print_pairs(names, [("images", f"{moments.num_images:,}"), ("pixels", f"{moments.num_pixels:,}"),
                        ("mean ± std, gray levels", per_channel)])  # fmt: skip
    angles = angles_degrees(basis)
    rows: list[list[Any]] = [
        [
            str(i + 1),
            f"{basis.unit_eigenvalues[i]:.5f}",
            f"{PUBLISHED_EIGENVALUES[i]:.4f}",
            f"{basis.eigenvalues[i]:.1f}",
            f"{np.sqrt(basis.eigenvalues[i]):.2f}",
            "  ".join(f"{value:+.4f}" for value in basis.eigenvectors[:, i]),
            f"{angles[i]:.2f}",
        ]
        for i in range(3)
    ]
    columns = ("", "λ (0..1)", "published", "λ (0..255)", "√λ", "vector (R, G, B)", "angle to published, °")
    print_table("eigenbasis of the RGB covariance", columns, rows)
