"""From a source to a dataset: the plan, its shards as jobs, and what becomes of one picture.

A shard belongs to one worker from its first source to its rename, so nothing but counters passes between processes, and
the bytes of a shard depend on the plan alone: not on how many workers there were or which one had it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_plan import MAX_SHARDS, DatasetPlan, PlannedShard
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.decode import DecodedSource, DecodePolicy, Pixels, decode_source
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.perceptual_hash import HASH_KIND
from lmdali.pipeline.record_codec import decode_stored, encode_jpeg, encode_ppm
from lmdali.pipeline.records import MAX_POSITION
from lmdali.pipeline.shard_output import ShardOutput
from lmdali.pipeline.storable_jpeg import is_storable
from lmdali.pipeline.tables import RejectRow
from lmdali.tools.bicubic_filter import torch_version
from lmdali.tools.resize import AREA, BICUBIC, FilterName, ResizeRecipe, resize_and_crop
from lmdali.tools.source_entries import SourceEntry
from lmdali.tools.source_jpeg import SourceJpegDecoder, source_jpeg_decoder
from lmdali.tools.source_order import plan_order
from lmdali.tools.sources import Source, SourceReader
from lmdali.tools.stored_jpeg import StoredJpegDecoder

_MIN_SHARD_SOURCES = 64
_MIN_SHARDS = 64
"""A small set is cut finer than `shard_bytes` asks, so that every worker has something to do until the end."""

_PICTURES_WORTH_COMPILING = 8192
"""For each CPU: loops are loaded in a second or two and save 1.2 to 2.1 ms a picture; what numba compiles for the first
job of a machine takes 17 s."""

# Bytes per pixel of 4:2:0 JPEGs of ImageNet photographs at 256x256, measured on 360 of them (docs/format.md).
_QUALITY_POINTS = (0, 50, 75, 85, 90, 95, 100)
_BYTES_PER_PIXEL = (0.05, 0.135, 0.198, 0.263, 0.328, 0.468, 0.89)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """How a source becomes a dataset.

    Attributes:
        size: side of the stored images, pixels.
        filter: "area" for the recipe of the 2012 data, "bicubic" for sharper pictures; see `lmdali.tools.resize`.
        encoding: "jpeg", or "raw" pixels (binary PPM).
        quality: of the JPEGs, 1 to 100.
        orientation: "ignore" the EXIF orientation tag, as the 2012 data did, or "apply" it.
        shard_bytes: size to aim at for a shard.
        seed: of the permutation that spreads the sources over the shards.
        max_bad: share of sources that may be rejected before the exit code says no.
        reuse_jpeg: store a source that already is a baseline JPEG of this size as it is, byte for byte.
    """

    size: int = 256
    filter: FilterName = "area"
    encoding: Literal["jpeg", "raw"] = "jpeg"
    quality: int = 95
    orientation: Literal["ignore", "apply"] = "ignore"
    shard_bytes: int = 256_000_000
    seed: int = 0
    max_bad: float = 0.01
    reuse_jpeg: bool = False

    def __post_init__(self) -> None:
        self.resize()
        self.decode_policy()
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

    def resize(self) -> ResizeRecipe:
        """How pictures become squares."""
        return ResizeRecipe.named(self.filter, self.size)

    def decode_policy(self) -> DecodePolicy:
        """How sources are decoded."""
        return _decode_policy(self.orientation)

    def recipe(self) -> dict[str, Any]:
        """What decides the stored pixels, for the manifest."""
        resizer = {"resizer": f"torch {torch_version()}"} if self.filter == "bicubic" else {}
        recipe = {
            "resize": asdict(self.resize()),
            **resizer,
            "orientation": self.orientation,
            "quality": self.quality if self.encoding == "jpeg" else None,
            "chroma_subsampling": "4:2:0" if self.encoding == "jpeg" else None,
            "seed": self.seed,
            "perceptual_hash": HASH_KIND,
            "decoder": f"opencv {cv2.__version__}, simplejpeg {simplejpeg.__version__}",
        }
        # Only where it is used: a dataset made without it keeps the digest that it had before this option was there.
        return recipe | {"reuse_jpeg": True} if self.reuse_jpeg else recipe


@cache
def _decode_policy(orientation: Literal["ignore", "apply"]) -> DecodePolicy:
    return DecodePolicy(orientation=orientation)


def make_plan(source: Source, config: ConvertConfig) -> DatasetPlan:
    """Cut a source into shards; depends on the source and the options, not on the machine.

    Raises:
        InputError: more sources than keys can number, or more shards than names.
    """
    count = len(source.entries)
    if count > MAX_POSITION + 1:
        raise InputError(f"{count} sources are more than {MAX_POSITION + 1}: split them into several datasets")
    by_bytes = max(1, config.shard_bytes // (config.record_bytes + 2048))
    shard_sources = min(by_bytes, max(_MIN_SHARD_SOURCES, -(-count // _MIN_SHARDS)))
    if (num_shards := -(-count // shard_sources)) > MAX_SHARDS:
        raise InputError(
            f"{count} sources would be cut into {num_shards} shards, more than {MAX_SHARDS}: raise --shard-bytes"
        )
    return DatasetPlan(
        image_size=config.size,
        encoding=config.encoding,
        class_names=tuple(source.class_names),
        num_sources=count,
        shard_sources=shard_sources,
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
        set_aside: by plan position, sources that are known to kill the process that converts them: rejected untouched.
        pays_compiling: whether there is so much to convert that loading compiled loops, which give the same bytes in
            less time, pays.
    """

    writer: ShardOutput
    config: ConvertConfig
    reader: SourceReader
    entries: list[SourceEntry]
    name: str
    first_position: int
    set_aside: dict[int, RejectRow] = field(default_factory=dict)
    pays_compiling: bool = False

    @property
    def is_published(self) -> bool:
        """Whether the shard has its final name."""
        return self.writer.has(self.name)

    def discard_leftovers(self) -> None:
        """Remove what processes that are gone have left of this shard."""
        self.writer.discard([self.name], finished=False)


def pays_compiling(num_pictures: int) -> bool:
    """Whether so many pictures are worth compiled loops on this machine."""
    return num_pictures >= _PICTURES_WORTH_COMPILING * usable_cpus()


def shard_jobs(source: Source, config: ConvertConfig, writer: DatasetWriter) -> Iterator[ShardJob]:
    """The jobs that are left to do, in shard order."""
    return jobs_of(source, config, writer, writer.unfinished())


def jobs_of(
    source: Source, config: ConvertConfig, writer: ShardOutput, shards: Sequence[PlannedShard]
) -> Iterator[ShardJob]:
    """The jobs that make some shards, in their order."""
    order = plan_order(source.scan, config.seed)
    pays = pays_compiling(sum(count for _, _, count in shards))
    for name, first, count in shards:
        entries = [source.entries[int(index)] for index in order.indices(first, first + count)]
        yield ShardJob(writer, config, source.reader, entries, name, first, pays_compiling=pays)


@dataclass(frozen=True, eq=False)
class PictureMemory:
    """Memory that the pictures of a shard use one after the other: fresh one would cost a page fault per 4 kB.

    Attributes:
        source: `(n,)` uint8 for a decoded source.
        stored: `(size, size, 3)` uint8 for what is decoded back.
        decode_source: compiled decoder of JPEG sources, which has memory of its own.
        decode_stored: compiled decoder of stored JPEGs, which has memory of its own.
    """

    source: Pixels | None = None
    stored: Pixels | None = None
    decode_source: SourceJpegDecoder | None = None
    decode_stored: StoredJpegDecoder | None = None


def prepare_pictures(config: ConvertConfig, *, compiled: bool) -> PictureMemory:
    """Make ready for many pictures: room for a source of 8 megapixels, larger than nearly all, and for a stored one.

    Args:
        config: how they will be converted.
        compiled: load the compiled loops, those that can be used here.
    """
    decode_source = decode_stored = None
    if compiled:
        (AREA if config.filter == "area" else BICUBIC).compile()
        decode_source = source_jpeg_decoder()
        # Whoever has the one has numba, which the other needs.
        decode_stored = None if decode_source is None else StoredJpegDecoder(config.size)
    stored = np.empty((config.size, config.size, 3), np.uint8)
    return PictureMemory(np.empty(24_000_000, np.uint8), stored, decode_source, decode_stored)


_NO_MEMORY = PictureMemory()


def convert_image(
    data: bytes, path: str | None, config: ConvertConfig, memory: PictureMemory | None = None
) -> tuple[bytes, Pixels, DecodedSource]:
    """Source bytes -> (stored image file, its pixels decoded back, what was decoded).

    Args:
        data: a whole source file.
        path: its name, for the oddity `misnamed`; None where it has none.
        config: how.
        memory: for the pixels, which are then good until it is used again.

    Raises:
        SourceRejected: with the reason.
        MemoryError: there is not enough of it.
    """
    memory = memory or _NO_MEMORY
    source = decode_source(data, config.decode_policy(), name=path, buffer=memory.source, jpeg=memory.decode_source)
    if config.reuse_jpeg and "damaged" not in source.oddities and is_storable(data, config.size):
        return data, source.pixels, replace(source, oddities=(*source.oddities, "kept"))
    pixels = resize_and_crop(source.pixels, config.resize())
    if config.encoding == "raw":
        stored = encode_ppm(pixels)
        return stored, decode_stored(stored, config.size), source
    stored = encode_jpeg(pixels, config.quality)
    if memory.stored is not None and memory.decode_stored is not None and memory.decode_stored(stored, memory.stored):
        return stored, memory.stored, source
    return stored, decode_stored(stored, config.size, memory.stored), source
