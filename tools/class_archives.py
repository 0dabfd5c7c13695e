"""The training images of ILSVRC as they come: a tar of one tar per class, or a folder of the class tars.

What is found, and in which order, is the same as for the folders that unpacking them gives (`class_folders`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.path_kind import is_dir
from lmdali.tools.class_folders import has_image_extension, is_hidden, listed
from lmdali.tools.class_names import refuse_extra_classes
from lmdali.tools.image_patch import ImagePatch
from lmdali.tools.range_reader import RangeReader
from lmdali.tools.source_entries import EntryTable, Ignored, Scan
from lmdali.tools.tar_scan import TarMember, latest_members, open_tar, walk_tar

CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
"""File name of the archive of a class."""

_LOOKS_LIKE_CLASSES = re.compile(r"[^.].*\.tar|n\d+.*\.(tar\.\w+|tgz|zip)")
_IMAGE = re.compile(r"n\d{8}_\d+\.JPEG")


class _ClassArchive(NamedTuple):
    """Where the archive of a class is: number and path of the file, and its name and bytes if it is within a tar."""

    file: int
    path: Path
    name: str | None
    offset: int
    num_bytes: int | None


def scan_class_archives(
    path: Path, classes: Sequence[str] | None = None, patch: Path | None = None
) -> tuple[Scan, RangeReader]:
    """Find every image in the archives of all classes.

    Args:
        path: a tar of `nXXXXXXXX.tar` archives, or a folder of them.
        classes: class names in label order, from a training set; default: the sorted WordNet ids.
        patch: an archive of images that replace those of the same file name.

    Returns:
        What was found, and the reader for it.

    Raises:
        InputError: no such archives, a damaged one, or a class that `classes` does not have.
    """
    ignored = Ignored()
    listing = _class_archives(path, ignored) if is_dir(path) else {}
    files = [archive.path for archive in listing.values()] or [path]
    reader = RangeReader.over(files if patch is None else [*files, patch])  # as they are before anything is read
    archives = listing or _class_archives(path, ignored)
    names = sorted(archives)
    classes = names if classes is None else classes
    refuse_extra_classes(names, classes, repr(str(path)), "class archives")
    entries, patches = EntryTable(), ImagePatch(patch, _IMAGE, len(files), ignored)
    for label, wnid in enumerate(classes):
        if wnid in archives:
            for member in _images(archives[wnid], ignored):
                image = f"{wnid}/{member.name}"
                place = (archives[wnid].file, member.offset, member.num_bytes)
                entries.append(image, label, patches.place(image, place))
    if not entries:
        raise InputError(
            f"{str(path)!r}: {len(names)} archives of classes, but no image (ignored: {ignored.summary()})"
        )
    patches.refuse_leftover(repr(str(path)))
    return Scan(tuple(classes), entries, ignored, variant=patches.variant, detail=patches.detail()), reader


def class_archive_names(path: Path) -> tuple[str, ...]:
    """The class names, in label order, without looking into the archives of the classes.

    Raises:
        InputError: there is none, or the archive is damaged.
    """
    return tuple(sorted(_class_archives(path, Ignored())))


def _class_archives(path: Path, ignored: Ignored) -> dict[str, _ClassArchive]:
    archives = _in_folder(path, ignored) if is_dir(path) else _in_tar(path, ignored)
    if not archives:
        raise InputError(f"{str(path)!r}: no archives of classes in it (ignored: {ignored.summary()}): expected n*.tar")
    return archives


def _in_folder(folder: Path, ignored: Ignored) -> dict[str, _ClassArchive]:
    names = []
    for entry in listed(folder):
        if CLASS_ARCHIVE.fullmatch(entry.name):
            names.append(entry.name)
        else:
            _refuse_lost_archive(entry.name, repr(str(folder)))
            ignored.add("hidden" if is_hidden(entry.name) else "other_member", entry.name)
    return {
        name.removesuffix(".tar"): _ClassArchive(number, folder / name, None, 0, None)
        for number, name in enumerate(sorted(names))
    }


def _in_tar(path: Path, ignored: Ignored) -> dict[str, _ClassArchive]:
    archives: dict[str, _ClassArchive] = {}
    with open_tar(str(path)) as window:
        for member in latest_members(walk_tar(window, ignored), ignored):
            match = CLASS_ARCHIVE.fullmatch(posixpath.basename(member.name))
            if match is None:
                _refuse_lost_archive(member.name, window.where)
                ignored.add("other_member", member.name)
                continue
            before = archives.get(match[1])
            if before is not None:
                both = f"{before.name!r}, {member.name!r}"
                raise InputError(f"{window.where}: class {match[1]} is there twice: {both}: take one of them out")
            archives[match[1]] = _ClassArchive(0, path, member.name, member.offset, member.num_bytes)
    return archives


def _refuse_lost_archive(name: str, where: str) -> None:
    """Other files may lie beside the archives, but what may hold images is not left out without a word."""
    if _LOOKS_LIKE_CLASSES.fullmatch(posixpath.basename(name)):
        raise InputError(f"{where}: {name!r} is an archive, but not of a class (nXXXXXXXX.tar): take it out")


def _images(archive: _ClassArchive, ignored: Ignored) -> list[TarMember]:
    """The images of a class, in the order of `scan_class_folders`: by folder, then by file name."""
    found = []
    with open_tar(str(archive.path), archive.offset, archive.num_bytes, archive.name) as window:
        for member in latest_members(walk_tar(window, ignored), ignored):
            if has_image_extension(member.name):
                found.append(member)
            else:
                ignored.add("other_extension", member.name)
    return sorted(found, key=lambda member: posixpath.split(member.name))
