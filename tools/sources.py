"""Where images come from: any kind of source, seen as one sequence of entries and a reader.

A source is scanned once and then only read, one image at a time, when it is needed. The reader is small and picklable,
so that worker processes get it and a few entries instead of millions. Nothing is ever written to a source. Names are
bytes to the file system and may hold anything; they are `str` with surrogate escapes here.

A new kind of source (archives, Parquet, LMDB) is one module with a scan and a reader, and one line in `open_source`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.manifest import MANIFEST_FILE, load_manifest
from lmdali.tools.class_folders import class_folder_names, scan_class_folders
from lmdali.tools.file_reader import FileReader
from lmdali.tools.list_file import scan_list_file
from lmdali.tools.source_entries import Ignored, Scan, SourceEntry

SourceFormat = Literal["auto", "folder", "list"]

_FINGERPRINT_BATCH = 10_000


class SourceReader(Protocol):
    """Reads single entries; picklable, and opens what it needs in the process it is used in."""

    def read(self, entry: SourceEntry) -> bytes:
        """The image file's bytes.

        Raises:
            SourceRejected: with a named reason.
        """
        ...


class Source(Protocol):
    """Images with labels, in a fixed order."""

    @property
    def kind(self) -> str:
        """What it was recognised as: `folder`, `list`, ..."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Position is label."""
        ...

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Entries of each class; a class may have none."""
        ...

    @property
    def entries(self) -> Sequence[SourceEntry]:
        """All images, in the source's canonical order."""
        ...

    @property
    def ignored(self) -> Ignored:
        """What was seen and is no entry, by reason."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 over class names and (path, label) pairs: the same source scanned again has the same."""
        ...

    @property
    def reader(self) -> SourceReader:
        """What to send to worker processes."""
        ...

    def read(self, entry: SourceEntry) -> bytes:
        """`reader.read(entry)`."""
        ...


@dataclass(frozen=True)
class FileSource:
    """A source made of plain files.

    Attributes:
        kind: `folder` or `list`.
        scan: class names, entries, and what was ignored.
        reader: reads the files.
    """

    kind: str
    scan: Scan
    reader: FileReader

    @property
    def class_names(self) -> tuple[str, ...]:
        """Position is label."""
        return self.scan.class_names

    @property
    def entries(self) -> Sequence[SourceEntry]:
        """All images: sorted by (class, folder, file), or in the order of the list."""
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
        """sha256 over class names and (path, label) pairs: the same source scanned again has the same."""
        return source_fingerprint(self.class_names, self.entries)

    def read(self, entry: SourceEntry) -> bytes:
        """The bytes of one image file; see `FileReader.read`."""
        return self.reader.read(entry)


def open_source(
    path: Path | str,
    format: SourceFormat = "auto",
    *,
    root: Path | str | None = None,
    classes: Sequence[str] | None = None,
    follow_links: bool = False,
) -> FileSource:
    """Scan a source.

    Args:
        path: a folder of class folders, or a list file of `path label` lines.
        format: what it is; "auto" takes a folder as "folder" and a file as "list".
        root: for list files: the folder that relative paths start from; default: the one the list file is in.
        classes: class names in label order; a validation set uses those of its training set (`read_class_names`).
        follow_links: for folders: also follow symbolic links to folders, and to files outside.

    Raises:
        InputError: it is missing, unreadable, empty or not what `format` says.
        ConfigError: options that do not go together.
    """
    path = Path(path)
    if format not in get_args(SourceFormat):
        raise ConfigError(f"format is {format!r}: choose among {', '.join(get_args(SourceFormat))}")
    if classes is not None:
        _check_class_names(classes, "the class list")
    if not os.path.lexists(path):
        raise InputError(f"{str(path)!r}: no such file or folder")
    is_folder = path.is_dir()
    if not is_folder and not path.is_file():
        raise InputError(
            f"{str(path)!r}: neither a folder nor a regular file: give a folder of class folders or a list file"
        )
    if format != "auto" and is_folder != (format == "folder"):
        raise InputError(
            f"{str(path)!r}: is a {'folder' if is_folder else 'file'}, but the format asked for is {format!r}"
        )
    if is_folder:
        if root is not None:
            raise ConfigError("root belongs to list files; the source is a folder: leave it out")
        scan = scan_class_folders(path, classes, follow_links=follow_links)
        return FileSource("folder", scan, FileReader(os.path.abspath(path)))  # noqa: PTH100
    folder = path.parent if root is None else Path(root)
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r}: the root of the list file is not a folder")
    return FileSource("list", scan_list_file(path, folder, classes), FileReader(os.path.abspath(folder)))  # noqa: PTH100


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """The class list of a training set, in label order.

    Args:
        path: a converted dataset, a folder of class folders, or a text file with one class name per line.

    Raises:
        InputError: it is none of these, empty, or names a class twice.
    """
    path = Path(path)
    if path.is_dir():
        return load_manifest(path).class_names if (path / MANIFEST_FILE).exists() else class_folder_names(path)
    if path.name == MANIFEST_FILE:
        return load_manifest(path.parent).class_names
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r}: the class list cannot be read ({error.strerror})") from error
    lines = (line.rstrip(b"\r") for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    names = tuple(os.fsdecode(line) for line in lines if line.strip())
    _check_class_names(names, repr(str(path)))
    return names


def source_fingerprint(class_names: Sequence[str], entries: Sequence[SourceEntry]) -> str:
    """sha256 over class names and (path, label) pairs; each name follows its length, so that none can run together."""
    digest = hashlib.sha256(b"lmdali source 1\n%d\n" % len(class_names))
    for name in map(os.fsencode, class_names):
        digest.update(b"%d:%s\n" % (len(name), name))
    for start in range(0, len(entries), _FINGERPRINT_BATCH):
        batch = ((os.fsencode(path), label) for path, label in entries[start : start + _FINGERPRINT_BATCH])
        digest.update(b"".join(b"%d:%s %d\n" % (len(path), path, label) for path, label in batch))
    return digest.hexdigest()


def _check_class_names(names: Sequence[str], where: str) -> None:
    if not names:
        raise InputError(f"{where}: no class names; expected one per line")
    if len(set(names)) != len(names):
        twice = next(name for position, name in enumerate(names) if name in names[:position])
        raise InputError(f"{where}: the class {twice!r} is named twice")
