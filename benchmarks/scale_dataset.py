"""Datasets with as many records, shards and rejects as ImageNet and more, without its pixels."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.eigenbasis import save_statistics
from lmdali.pipeline.manifest import SHARDS_DIRECTORY, Manifest, ShardInfo
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_writer import ShardWriter

TINY, FULL_SIZE = "tiny", "full_size"
"""Two folders over the same shards: see `make_dataset`."""

STORED_BYTES = 22_000
"""A 256x256 photograph at quality 90 with what LMDB adds; 256 MB shards hold 11,600."""

FULL_SIDE_PIXELS = 256
_SIDE_PIXELS = 2
_PPM_HEADER = b"P6\n2 2\n255\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    """How large a dataset pretends to be.

    Attributes:
        num_records: stored records.
        num_shards: they are spread over these evenly.
        num_classes: record n has label n % num_classes.
        reject_share: sources that were not stored, as a share of all.
    """

    num_records: int
    num_shards: int
    num_classes: int = 1000
    reject_share: float = 0.001

    def rejected(self) -> NDArray[np.int64]:
        """Plan positions of the rejected sources: ascending, anywhere, the same every time."""
        num_sources = round(self.num_records / (1 - self.reject_share))
        dice = np.random.Generator(np.random.Philox(key=self.num_records))
        return np.sort(dice.choice(num_sources, num_sources - self.num_records, replace=False)).astype(np.int64)

    def shards(self) -> list[ShardInfo]:
        """All shards as a manifest names them; files of `STORED_BYTES` a record that nobody has written."""
        rejected = self.rejected()
        ends = np.linspace(0, self.num_records + len(rejected), self.num_shards + 1).astype(np.int64)
        infos = []
        for number, (first, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            missing = rejected[slice(*np.searchsorted(rejected, [first, stop]))].tolist()
            count = stop - first - len(missing)
            infos.append(
                ShardInfo(
                    name=f"{number:05d}",
                    num_records=count,
                    first_position=first,
                    num_sources=stop - first,
                    rejected=tuple(missing),
                    file_bytes=count * STORED_BYTES // 4096 * 4096,
                    payload_bytes=count * STORED_BYTES,
                    sha256=f"{number:064x}",
                )
            )
        return infos

    def manifest(self, shards: list[ShardInfo]) -> Manifest:
        """What a conversion of 256x256 JPEGs would publish."""
        share, rest = divmod(self.num_records, self.num_classes)
        return Manifest(
            image_size=FULL_SIDE_PIXELS,
            encoding="jpeg",
            class_names=tuple(f"n{label:08d}" for label in range(self.num_classes)),
            class_counts=tuple(share + (label < rest) for label in range(self.num_classes)),
            num_records=self.num_records,
            num_rejected=sum(len(shard.rejected) for shard in shards),
            shards=tuple(shards),
            recipe={"resize": {"size": FULL_SIDE_PIXELS}, "quality": 90},
            source={"kind": "folder", "fingerprint": "0" * 64},
            tables={"records.parquet": "0" * 64, "rejects.parquet": "0" * 64},
        )


def make_dataset(directory: Path, case: Case) -> None:
    """Write a dataset whose records are real and tiny.

    Every shard is an LMDB written by `ShardWriter`, with its offsets; a record is a raw picture of 2x2 pixels. A hole
    without data then brings each file to the size it would have with photographs. Two manifests name these shards:
    `tiny` says what is in them, so batches can be read; `full_size` says 256x256 JPEG and has statistics of that size,
    so that opening it costs what opening ImageNet does. Hashes of shards are invented: nothing here reads them.
    """
    shards = directory / SHARDS_DIRECTORY
    shards.mkdir(parents=True)
    planned = case.shards()
    starts = np.cumsum([0, *(info.num_records for info in planned)])[:-1].tolist()
    with multiprocessing.get_context("spawn").Pool(usable_cpus()) as pool:
        write = partial(_write_shard, shards, case.num_classes)
        infos = pool.starmap(write, zip(planned, starts, strict=True), chunksize=4)
    full_size = case.manifest(infos)
    tiny = replace(full_size, image_size=_SIDE_PIXELS, encoding="raw")
    for name, manifest in ((TINY, tiny), (FULL_SIZE, full_size)):
        folder = directory / name
        folder.mkdir()
        (folder / SHARDS_DIRECTORY).symlink_to(shards.resolve(), target_is_directory=True)
        save_statistics(folder, _moments(manifest), manifest.save(folder).digest)


def _write_shard(shards: Path, num_classes: int, info: ShardInfo, first_record: int) -> ShardInfo:
    missing = set(info.rejected)
    record = first_record
    with ShardWriter(
        shards,
        info.name,
        first_position=info.first_position,
        num_sources=info.num_sources,
        image_size=_SIDE_PIXELS,
    ) as writer:
        for position in range(info.first_position, info.first_position + info.num_sources):
            if position not in missing:
                label = record % num_classes
                pixels = _PPM_HEADER + record.to_bytes(12, "little")
                path = f"n{label:08d}/n{label:08d}_{position}.JPEG"
                writer.put(position, path, pixels, label=label, height=_SIDE_PIXELS, width=_SIDE_PIXELS)
                record += 1
        written = writer.publish({})
    size_bytes = max(written.file_bytes, info.file_bytes)
    os.truncate(shards / info.name / DATA_FILE, size_bytes)
    return replace(info, file_bytes=size_bytes)


def _moments(manifest: Manifest) -> Moments:
    """Sums as large as those of a dataset that repeats one picture of noise."""
    side, count = manifest.image_size, manifest.num_records
    moments = Moments.zero(side, side)
    moments.add_image(np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (side, side, 3), np.uint8))
    assert moments.image_sums is not None
    return Moments(
        count,
        moments.num_pixels * count,
        moments.sums * count,
        moments.products * count,
        moments.image_sums * count,
    )
