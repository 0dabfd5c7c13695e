"""Where images come from: any kind of source, seen as one sequence of entries and a reader.

A source is scanned once and then only read, one image at a time, when it is needed. The reader is small and picklable,
so that worker processes get it and a few entries instead of millions. Nothing is ever written to a source. Names are
bytes to the file system and may hold anything; they are `str` with surrogate escapes here.

A new kind of source is one module with a scan and a reader, its line in `_OPENERS`, and its signs in
`source_detection`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.path_kind import exists, is_dir, is_file
from lmdali.tools.caffe_lmdb import scan_lmdb
from lmdali.tools.class_archives import scan_class_archives
from lmdali.tools.class_folders import scan_class_folders
from lmdali.tools.class_names import check_class_names, refuse_missing_classes
from lmdali.tools.file_reader import FileReader
from lmdali.tools.half_split import Half, take_half
from lmdali.tools.list_file import refuse_other_root, scan_list_file
from lmdali.tools.numbered_images import LabelFiles, scan_numbered_images
from lmdali.tools.parquet_scan import scan_parquet
from lmdali.tools.source_detection import SOURCE_FORMATS, SourceFormat, detect_format
from lmdali.tools.source_entries import Ignored, Scan, SourceEntry
from lmdali.tools.webdataset import scan_webdataset

_KINDS_OF_OPTION = {
    "root": ("list",),
    "follow_links": ("folder",),
    "devkit": ("ilsvrc-val",),
    "ground_truth": ("ilsvrc-val",),
    "patch": ("ilsvrc-train", "ilsvrc-val"),
    "split": ("parquet", "webdataset"),
    "image_column": ("parquet",),
    "label_column": ("parquet",),
}
"""Which kinds of source know an option; the others belong to all, or do no harm."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # a `Path` has one slash of two
_FINGERPRINT_BATCH = 10_000


class SourceReader(Protocol):
    """Reads single entries; picklable, and opens what it needs in the process it is used in."""

    def read(self, entry: SourceEntry) -> bytes:
        """The image file's bytes.

        Raises:
            SourceRejected: with a named reason.
        """
        ...


@dataclass(frozen=True)
class Source:
    """Images with labels, in a fixed order.

    Attributes:
        kind: what it was recognised as: `folder`, `list`, ...
        scan: class names, entries, and what was ignored.
        reader: what to send to worker processes.
    """

    kind: str
    scan: Scan
    reader: SourceReader

    @property
    def class_names(self) -> tuple[str, ...]:
        """Position is label."""
        return self.scan.class_names

    @property
    def entries(self) -> Sequence[SourceEntry]:
        """All images, in the source's canonical order."""
        return self.scan.entries

    @property
    def ignored(self) -> Ignored:
        """What was seen and is no entry, by reason."""
        return self.scan.ignored

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """Entries of each class; a class may have none."""
        return tuple(np.bincount(self.scan.entries.labels(), minlength=len(self.class_names)).tolist())

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Names of the classes without an entry; they keep their number."""
        return tuple(name for name, count in zip(self.class_names, self.class_counts, strict=True) if count == 0)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over class names, (path, label) pairs and what else a scan found that matters for a plan.

        The same source scanned again has the same.
        """
        return source_fingerprint(self.class_names, self.entries, self.scan.blocks, self.scan.variant)

    def read(self, entry: SourceEntry) -> bytes:
        """`reader.read(entry)`."""
        return self.reader.read(entry)

    def describe(self) -> str:
        """One line for people: what it was taken for, and how much is in it."""
        detail = f", {self.scan.detail}" if self.scan.detail else ""
        return f"{self.kind}: {len(self.entries):,} images, {len(self.class_names):,} classes{detail}"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What may be told about a source beside its path.

    Attributes:
        root: for list files: the folder that relative paths start from; default: the one the list file is in.
        classes: class names in label order; a validation set uses those of its training set (`read_class_names`).
        allow_missing_classes: accept a source without a single image of some of `classes`.
        follow_links: for folders: also follow symbolic links to folders, and to files outside.
        devkit: for ilsvrc-val: the development kit; default: the one beside the images.
        ground_truth: for ilsvrc-val: the file of class ids; default: the kit's, for test images the one beside them.
        patch: for ilsvrc-train and ilsvrc-val archives: an archive of corrected images (`patch_images.tar`).
        split: for folders of Parquet files or of WebDataset's tars: which of several splits, or "all".
        image_column: for Parquet: the column of images; default: looked for.
        label_column: for Parquet: the column of class numbers or names; default: looked for.
        split_half: only this half of each class (`lmdali.tools.half_split`).
    """

    root: Path | str | None = None
    classes: Sequence[str] | None = None
    allow_missing_classes: bool = False
    follow_links: bool = False
    devkit: Path | str | None = None
    ground_truth: Path | str | None = None
    patch: Path | str | None = None
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_half: Half | None = None


def open_source(path: Path | str, format: SourceFormat = "auto", **options: Any) -> Source:
    """Scan a source.

    Args:
        path: a folder of class folders, a list file of `path label` lines, archives, Parquet or a Caffe LMDB.
        format: what it is; "auto" looks (`detect_format`).
        options: fields of `SourceOptions`.

    Raises:
        InputError: it is missing, unreadable, empty, not what `format` says, or its classes are not `classes`.
        ConfigError: options that do not go together.
    """
    path, chosen = Path(path), SourceOptions(**options)
    if format not in SOURCE_FORMATS:
        raise ConfigError(f"format is {format!r}: choose among {', '.join(SOURCE_FORMATS)}")
    if chosen.classes is not None:
        check_class_names(chosen.classes, "the class list")
    elif chosen.allow_missing_classes:
        raise ConfigError(
            "allow_missing_classes is for a source of a given class list: give that (--classes), or leave it out"
        )
    with storage_errors(path):
        is_there = exists(path) or path.is_symlink()
    if not is_there:
        if address := _ADDRESS.match(str(path)):
            raise InputError(
                f"the source is an address ({address[1]}://): images are converted from a disk: copy them here first"
            )
        pattern = ": patterns are not expanded, give the folder" if re.search(r"[*?{]", str(path)) else ""
        raise InputError(f"{str(path)!r}: no such file or folder{pattern}")
    kind = detect_format(path) if format == "auto" else format
    for name, kinds in _KINDS_OF_OPTION.items():
        if getattr(chosen, name) not in (None, False) and kind not in kinds:
            raise ConfigError(
                f"{name} belongs to sources of the kind {' or '.join(kinds)}; this is taken for {kind!r}: leave it out"
            )
    source = _OPENERS[kind](path, chosen)
    if chosen.split_half is not None:
        source = replace(source, scan=take_half(source.scan, chosen.split_half))
        if not source.entries:
            raise InputError(
                f"{str(path)!r}: the {chosen.split_half} half of each class is empty, for none has a second image"
            )
    if chosen.classes is not None and not chosen.allow_missing_classes:
        refuse_missing_classes(source.empty_classes, repr(str(path)))
    return source


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _open_folder(path: Path, options: SourceOptions) -> Source:
    if not is_dir(path):
        raise InputError(f"{str(path)!r}: is a file, but the format asked for is 'folder': leave --format out")
    scan = scan_class_folders(path, options.classes, follow_links=options.follow_links)
    return Source("folder", scan, FileReader(os.path.abspath(path)))  # noqa: PTH100


def _open_list(path: Path, options: SourceOptions) -> Source:
    if not is_file(path):
        raise InputError(f"{str(path)!r}: is no regular file, but the format asked for is 'list': leave --format out")
    folder = path.parent if options.root is None else Path(options.root)
    if not is_dir(folder):
        raise InputError(f"{str(folder)!r}: the root of the list file is not a folder: check --root")
    scan = scan_list_file(path, folder, options.classes)
    refuse_other_root(path, folder, scan)
    return Source("list", scan, FileReader(os.path.abspath(folder)))  # noqa: PTH100


def _open_class_archives(path: Path, options: SourceOptions) -> Source:
    return Source("ilsvrc-train", *scan_class_archives(path, options.classes, _path(options.patch)))


def _open_numbered_images(path: Path, options: SourceOptions) -> Source:
    labels = LabelFiles(_path(options.devkit), _path(options.ground_truth))
    return Source("ilsvrc-val", *scan_numbered_images(path, options.classes, labels=labels, patch=_path(options.patch)))


def _open_webdataset(path: Path, options: SourceOptions) -> Source:
    return Source("webdataset", *scan_webdataset(path, options.classes, split=options.split))


def _open_parquet(path: Path, options: SourceOptions) -> Source:
    scan, reader = scan_parquet(
        path,
        options.classes,
        split=options.split,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    return Source("parquet", scan, reader)


def _open_lmdb(path: Path, options: SourceOptions) -> Source:
    return Source("caffe-lmdb", *scan_lmdb(path, options.classes))


_OPENERS: dict[str, Callable[[Path, SourceOptions], Source]] = {
    "folder": _open_folder,
    "list": _open_list,
    "ilsvrc-train": _open_class_archives,
    "ilsvrc-val": _open_numbered_images,
    "webdataset": _open_webdataset,
    "parquet": _open_parquet,
    "caffe-lmdb": _open_lmdb,
}


def source_fingerprint(
    class_names: Sequence[str],
    entries: Sequence[SourceEntry],
    blocks: Sequence[int] | None = None,
    variant: str = "",
) -> str:
    """sha256 over class names, (path, label) pairs, and block sizes and variant, where there are any.

    Each name follows its length, so that none can run together.
    """
    digest = hashlib.sha256(b"lmdali source 1\n%d\n" % len(class_names))
    for name in map(os.fsencode, class_names):
        digest.update(b"%d:%s\n" % (len(name), name))
    for start in range(0, len(entries), _FINGERPRINT_BATCH):
        batch = ((os.fsencode(path), label) for path, label, *_ in entries[start : start + _FINGERPRINT_BATCH])
        digest.update(b"".join(b"%d:%s %d\n" % (len(path), path, label) for path, label in batch))
    if blocks is not None:
        digest.update(b"blocks %s\n" % " ".join(map(str, blocks)).encode())
    if variant:
        digest.update(b"variant %s\n" % os.fsencode(variant))
    return digest.hexdigest()
