"""From a source to a dataset: the plan, and the work on one shard.

A shard belongs to one worker from its first source to its rename, so nothing but counters passes between processes, and
the bytes of a shard depend on the plan alone: not on how many workers there were or which one had it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg

from lmdali.pipeline.dataset_writer import DatasetPlan, DatasetWriter, ShardContent
from lmdali.pipeline.decode import (
    DecodedSource,
    DecodePolicy,
    Pixels,
    decode_source,
    decode_stored,
    encode_jpeg,
    encode_ppm,
    is_storable,
)
from lmdali.pipeline.eigenbasis import Moments
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.records import MAX_POSITION, record_crc, record_key
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.shard_writer import ShardWriter
from lmdali.pipeline.tables import RecordRow, RejectRow, printable
from lmdali.tools.resize import ResizeRecipe, resize_and_crop
from lmdali.tools.source_entries import SourceEntry, own_name
from lmdali.tools.source_order import plan_order
from lmdali.tools.sources import Source, SourceReader

_MIN_SHARD_SOURCES = 64
_MIN_SHARDS = 64
"""A small set is cut finer than `shard_bytes` asks, so that every worker has something to do until the end."""

# Bytes per pixel of 4:2:0 JPEGs of ImageNet photographs at 256x256, measured on 360 of them (docs/format.md).
_QUALITY_POINTS = (0, 50, 75, 85, 90, 95, 100)
_BYTES_PER_PIXEL = (0.05, 0.135, 0.198, 0.263, 0.328, 0.468, 0.89)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """How a source becomes a dataset.

    Attributes:
        size: side of the stored images, pixels.
        encoding: "jpeg", or "raw" pixels (binary PPM).
        quality: of the JPEGs, 1 to 100.
        orientation: "ignore" the EXIF orientation tag, as the 2012 data did, or "apply" it.
        shard_bytes: size to aim at for a shard.
        seed: of the permutation that spreads the sources over the shards.
        max_bad: share of sources that may be rejected before the exit code says no.
        reuse_jpeg: store a source that already is a baseline JPEG of this size as it is, byte for byte.
    """

    size: int = 256
    encoding: Literal["jpeg", "raw"] = "jpeg"
    quality: int = 95
    orientation: Literal["ignore", "apply"] = "ignore"
    shard_bytes: int = 256_000_000
    seed: int = 0
    max_bad: float = 0.01
    reuse_jpeg: bool = False

    def __post_init__(self) -> None:
        ResizeRecipe(size=self.size)
        DecodePolicy(orientation=self.orientation)
        if self.encoding not in ("jpeg", "raw"):
            raise ConfigError(f"encoding must be jpeg or raw, found {self.encoding!r}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be in 1..100, found {self.quality}")
        if self.shard_bytes < 1_000_000:
            raise ConfigError(f"shard_bytes must be at least 1 MB, found {self.shard_bytes}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be in 0..2**64 - 1, found {self.seed}")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad is a share of all sources, 0..1; found {self.max_bad}")
        if self.reuse_jpeg and self.encoding != "jpeg":
            raise ConfigError(f"reuse_jpeg keeps JPEG files, the encoding is {self.encoding!r}: leave one of them out")

    @property
    def record_bytes(self) -> int:
        """Expected size of one stored image, exact for raw."""
        per_pixel = 3.0 if self.encoding == "raw" else float(np.interp(self.quality, _QUALITY_POINTS, _BYTES_PER_PIXEL))
        return round(self.size * self.size * per_pixel) + 64

    def recipe(self) -> dict[str, Any]:
        """What decides the stored pixels, for the manifest."""
        recipe = {
            "resize": asdict(ResizeRecipe(size=self.size)),
            "orientation": self.orientation,
            "quality": self.quality if self.encoding == "jpeg" else None,
            "chroma_subsampling": "4:2:0" if self.encoding == "jpeg" else None,
            "seed": self.seed,
            "decoder": f"opencv {cv2.__version__}, simplejpeg {simplejpeg.__version__}",
        }
        # Only where it is used: a dataset made without it keeps the digest that it had before this option was there.
        return recipe | {"reuse_jpeg": True} if self.reuse_jpeg else recipe


def make_plan(source: Source, config: ConvertConfig) -> DatasetPlan:
    """Cut a source into shards; depends on the source and the options, not on the machine.

    Raises:
        InputError: more sources than keys can number.
    """
    count = len(source.entries)
    if count > MAX_POSITION + 1:
        raise InputError(f"{count} sources are more than {MAX_POSITION + 1}: split them into several datasets")
    by_bytes = max(1, config.shard_bytes // (config.record_bytes + 2048))
    return DatasetPlan(
        image_size=config.size,
        encoding=config.encoding,
        class_names=tuple(source.class_names),
        num_sources=count,
        shard_sources=min(by_bytes, max(_MIN_SHARD_SOURCES, -(-count // _MIN_SHARDS))),
        recipe=config.recipe(),
        source={"kind": source.kind, "fingerprint": source.fingerprint},
    )


@dataclass(frozen=True)
class ShardJob:
    """One shard's work, small enough to send to another process.

    Attributes:
        writer: the output.
        config: how.
        reader: opens sources.
        entries: the sources of this shard, in plan order.
        name: of the shard.
        first_position: plan position of the first entry.
    """

    writer: DatasetWriter
    config: ConvertConfig
    reader: SourceReader
    entries: list[SourceEntry]
    name: str
    first_position: int


def shard_jobs(source: Source, config: ConvertConfig, writer: DatasetWriter) -> Iterator[ShardJob]:
    """The jobs that are left to do, in shard order."""
    order = plan_order(source.scan, config.seed)
    for name, first, count in writer.unfinished():
        entries = [source.entries[int(index)] for index in order.indices(first, first + count)]
        yield ShardJob(writer, config, source.reader, entries, name, first)


def convert_image(data: bytes, path: str | None, config: ConvertConfig) -> tuple[bytes, Pixels, DecodedSource]:
    """Source bytes -> (stored image file, its pixels decoded back, what was decoded).

    Args:
        data: the image file.
        path: its name, for the oddity `misnamed`; None where it has none.
        config: how.

    Raises:
        SourceRejected: with the reason.
    """
    source = decode_source(data, DecodePolicy(orientation=config.orientation), name=path)
    if config.reuse_jpeg and "damaged" not in source.oddities and is_storable(data, config.size):
        return data, source.pixels, replace(source, oddities=(*source.oddities, "kept"))
    pixels = resize_and_crop(source.pixels, ResizeRecipe(size=config.size))
    stored = encode_ppm(pixels) if config.encoding == "raw" else encode_jpeg(pixels, config.quality)
    return stored, decode_stored(stored, config.size), source


def make_shard(job: ShardJob, tick: Callable[[], None] = lambda: None) -> None:
    """Write one shard. `tick` is called once per source and may raise to stop the work.

    Raises:
        StorageError: the disk refused; nothing of the shard is left.
    """
    content = ShardContent([], [], Moments.zero(job.config.size, job.config.size))
    with job.writer.open_shard(job.name, job.first_position, len(job.entries)) as shard:
        for offset, entry in enumerate(job.entries):
            _store(job, job.first_position + offset, entry, shard, content)
            tick()
        job.writer.finish_shard(job.name, shard, content)


def _store(job: ShardJob, position: int, entry: SourceEntry, shard: ShardWriter, content: ShardContent) -> None:
    data: bytes | None = None
    try:
        data = job.reader.read(entry)
        stored, pixels, source = convert_image(data, own_name(entry), job.config)
    except SourceRejected as rejected:
        content.rejects.append(
            RejectRow(
                position=position,
                label=entry.label,
                source=printable(entry.path),
                reason=str(rejected.reason),
                detail=rejected.detail,
                source_bytes=-1 if data is None else len(data),
                source_sha256="" if data is None else hashlib.sha256(data).hexdigest(),
            )
        )
        return
    shard.put(position, entry.path, stored, label=entry.label, height=job.config.size, width=job.config.size)
    content.moments.add_image(pixels)
    content.records.append(
        RecordRow(
            position=position,
            shard=job.name,
            row=len(content.records),
            key=printable(record_key(position, entry.path).decode("utf-8", "surrogateescape")),
            label=entry.label,
            source=printable(entry.path),
            source_bytes=len(data),
            source_sha256=hashlib.sha256(data).hexdigest(),
            source_width=source.width,
            source_height=source.height,
            oddities=",".join(source.oddities),
            stored_bytes=len(stored),
            crc32c=record_crc(stored, entry.label),
        )
    )
