"""Caffe LMDBs as sources: any LMDB 0.9 file of `Datum` values, and datasets of ours, read without the LMDB library.

The file's tree is walked once; after that a value is a run of bytes of the file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmdali.pipeline.errors import InputError, RecordError, ShardError
from lmdali.pipeline.image_header import read_header as read_image_header
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, ShardInfo, load_manifest
from lmdali.pipeline.path_kind import is_dir, is_file
from lmdali.pipeline.records import Record, crc_problem, parse_record
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.pipeline.shard_header import DATA_FILE, check_size
from lmdali.pipeline.shard_index import walk_values
from lmdali.pipeline.system_error import system_says
from lmdali.tools.class_names import refuse_extra_classes
from lmdali.tools.list_file import MAX_CLASSES
from lmdali.tools.range_reader import RangeReader
from lmdali.tools.source_entries import EntryTable, Ignored, Scan, SourceEntry

_HEAD_BYTES = 28
_MAGIC_PLACES = (16, 24)
"""Of the first page's magic number: LMDB 0.9, and 1.0, which is recognised and refused with a better reason."""

_MAGIC = b"\xde\xc0\xef\xbe"


def looks_like_lmdb(path: Path) -> bool:
    """Whether a path is an LMDB file, a directory of one, or a dataset of ours."""
    try:
        if is_dir(path):
            return is_file(path / DATA_FILE) or _is_dataset(path)
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return path.name == DATA_FILE or any(head[place : place + 4] == _MAGIC for place in _MAGIC_PLACES)


def scan_lmdb(path: Path, classes: Sequence[str] | None = None) -> tuple[Scan, LmdbReader]:
    """Every record in the order of keys; only the labels are looked at.

    Args:
        path: an LMDB directory, its `data.mdb`, or a dataset of ours, whose shards are taken in order.
        classes: class names in label order; a dataset of ours is mapped to them by its own names. Default: those
            names, or for a plain LMDB the numbers.

    Raises:
        InputError: a value is no Datum, has no label, or its label is of no class; no record at all.
        ShardError: a file is truncated, damaged, or of another LMDB format.
    """
    names: Sequence[str] | None = None
    files: list[tuple[Path, ShardInfo | None]]
    if _is_dataset(path) and not is_file(path / DATA_FILE):
        manifest = load_manifest(path)
        names = manifest.class_names
        files = [(path / SHARDS_DIRECTORY / info.name / DATA_FILE, info) for info in manifest.shards]
    elif is_dir(path) and not is_file(path / DATA_FILE):
        raise InputError(f"{str(path)!r}: has no {DATA_FILE} and no {MANIFEST_FILE}: give the directory of an LMDB")
    else:
        files = [(path / DATA_FILE if is_dir(path) else path, None)]
    if names is not None and classes is not None:
        refuse_extra_classes(names, classes, repr(str(path)), "classes")
        label_of = {name: label for label, name in enumerate(classes)}
        to_ours = [label_of[name] for name in names]
    else:
        to_ours = list(range(len(classes if classes is not None else names or ())))
    reader = LmdbReader(RangeReader.over([file for file, _ in files]))
    entries, largest = EntryTable(), -1
    for number, (file, info) in enumerate(files):
        for key, record_label, offset, size in _labels(file, info):
            label = _checked(file, key, record_label, len(to_ours) or MAX_CLASSES)
            largest = max(largest, label)
            entries.append(os.fsdecode(key), to_ours[label] if to_ours else label, (number, offset, size))
    if not entries:
        raise InputError(f"{str(path)!r}: the LMDB holds no record: give another")
    classes = classes if classes is not None else names
    class_names = tuple(classes if classes is not None else map(str, range(largest + 1)))
    return Scan(class_names, entries, Ignored()), reader


@dataclass(frozen=True)
class LmdbReader:
    """Reads values where the scan found them. Small and picklable.

    Attributes:
        ranges: of the files of values.
    """

    ranges: RangeReader

    def read(self, entry: SourceEntry) -> bytes:
        """The image file of one record; unencoded pixels become a binary PPM or PGM.

        Raises:
            SourceRejected: too_many_bytes, read_failed, corrupt, empty or unsupported.
            InputError: the file is gone, or was changed after it was scanned.
            StorageError: the disk failed when the file was opened.
        """
        value = self.ranges.read(entry)
        try:
            record = parse_record(value)
        except RecordError as error:
            raise SourceRejected(Rejection.CORRUPT, str(error)) from None
        if record.crc32c is not None and not record.is_intact:
            raise SourceRejected(Rejection.CORRUPT, crc_problem(len(record.data)))
        return image_file(record, len(value))


def image_file(record: Record, value_bytes: int = 0) -> bytes:
    """The image file in a Datum, or a binary PPM or PGM of its planes.

    Args:
        record: of any Caffe LMDB.
        value_bytes: size of the whole Datum, by which one of floats is known.

    Raises:
        SourceRejected: corrupt, empty or unsupported.
    """
    channels, height, width = record.shape
    samples = channels * height * width
    if not len(record.data):
        # A Datum of floats has four bytes for every sample in a field of its own.
        if samples and value_bytes >= 4 * samples:
            raise SourceRejected(Rejection.UNSUPPORTED, "a Datum of float_data, which is no 8-bit image")
        raise SourceRejected(Rejection.EMPTY, "the Datum has no data")
    # Older tools leave `encoded` out of both kinds; of pixels, the size tells.
    if record.encoded and (len(record.data) != samples or _is_image(record.data)):
        return bytes(record.data)
    if channels not in (1, 3):
        raise SourceRejected(Rejection.UNSUPPORTED, f"pixels of {channels} channels, expected 1 or 3")
    if len(record.data) != samples:
        raise SourceRejected(
            Rejection.CORRUPT, f"{len(record.data)} bytes of pixels, {channels} x {height} x {width} need {samples}"
        )
    planes = np.frombuffer(record.data, np.uint8).reshape(channels, height, width)
    kind = b"P6" if channels == 3 else b"P5"
    return kind + b"\n%d %d\n255\n" % (width, height) + planes[::-1].transpose(1, 2, 0).tobytes()  # BGR planes to RGB


def _is_image(data: memoryview) -> bool:
    try:
        read_image_header(bytes(data))
    except SourceRejected:
        return False
    return True


def _labels(path: Path, info: ShardInfo | None) -> Iterator[tuple[bytes, int, int, int]]:
    """(key, label, offset and size of the value) of every record of one file."""
    header = check_size(
        path,
        expected_bytes=None if info is None else info.file_bytes,
        expected_entries=None if info is None else info.num_records,
    )
    try:
        with path.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    except OSError as error:
        raise ShardError(f"{path}: {system_says(error)}") from error
    # No byte of an image is touched: the fields before and behind it are all that has to come from the disk.
    mapped.madvise(mmap.MADV_RANDOM)
    file = memoryview(mapped)
    for key, offset, size in walk_values(file, header, path):
        try:
            label = parse_record(file[offset : offset + size]).label
        except RecordError as error:
            raise InputError(f"{str(path)!r}, key {os.fsdecode(bytes(key))!r}: {error}") from None
        yield bytes(key), label, offset, size


def _checked(path: Path, key: bytes, label: int, limit: int) -> int:
    where = f"{str(path)!r}, key {os.fsdecode(key)!r}"
    if label < 0:
        raise InputError(f"{where}: has no label (or {label}): records without one cannot be converted")
    if label >= limit:
        raise InputError(
            f"{where}: label {label} is too large; there are {limit} classes, counted from 0: check the labels"
        )
    return label


def _is_dataset(directory: Path) -> bool:
    return is_file(directory / MANIFEST_FILE) and is_dir(directory / SHARDS_DIRECTORY)
