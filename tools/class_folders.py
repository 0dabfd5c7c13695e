"""Scanning a class-per-folder tree, by the rules of torchvision's ImageFolder where they are not traps.

The same: classes are the folders directly below the root, numbered in sorted order; images are found at any depth, in
the order (folder, file), by their extension in any case. Different, on purpose: a class folder without images keeps
its number; hidden folders (`.ipynb_checkpoints`, `.git`) and `__MACOSX` are no classes; symbolic links are not
followed out of the tree unless asked; and a folder that cannot be listed is an error, not silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lmdali.pipeline.errors import InputError
from lmdali.tools.class_names import refuse_extra_classes
from lmdali.tools.source_entries import EntryTable, Ignored, Scan

_PACKED = (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar")
IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"))
"""torchvision's list and .gif. What a file really is, its bytes say when it is decoded."""

_SYSTEM_NAMES = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
_SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


def scan_class_folders(root: Path, classes: Sequence[str] | None = None, *, follow_links: bool = False) -> Scan:
    """Find every image of a class-per-folder tree.

    Args:
        root: the folder of class folders.
        classes: class names in label order, from a training set; default: the sorted folder names.
        follow_links: also follow symbolic links to folders, and to files outside `root`.

    Raises:
        InputError: not such a tree, nothing in it, or a class that `classes` does not have.
    """
    ignored = Ignored()
    folders, num_loose_images = _class_folders(root, ignored)
    if not folders:
        raise InputError(_no_classes(root, num_loose_images, ignored))
    if classes is None:
        _refuse_splits(root, folders)
        classes = folders
    refuse_extra_classes(folders, classes, repr(str(root)), "class folders")
    entries, present = EntryTable(), set(folders)
    inside = os.path.realpath(root) + os.sep
    for label, name in enumerate(classes):
        if name in present:
            for path in _images_below(root, name, inside, ignored, follow_links=follow_links):
                entries.append(path, label)
    if not entries:
        has_links = {"symlinked_folder", "link_outside_source"} & ignored.counts.keys()
        links = "links are followed with --follow-links, and " if has_links else ""
        raise InputError(
            f"{str(root)!r}: {len(folders)} class folders, but no image file in any of them (ignored: "
            f"{ignored.summary()}): {links}images are known by the extensions {' '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    return Scan(tuple(classes), entries, ignored)


def class_folder_names(root: Path) -> tuple[str, ...]:
    """The class names of a tree, in label order, without looking into the folders.

    Raises:
        InputError: there is no class folder.
    """
    ignored = Ignored()
    folders, num_loose_images = _class_folders(root, ignored)
    if not folders:
        raise InputError(_no_classes(root, num_loose_images, ignored))
    return tuple(folders)


def _class_folders(root: Path, ignored: Ignored) -> tuple[list[str], int]:
    """Sorted names of the class folders, and how many image files lie beside them."""
    folders, num_loose_images = [], 0
    for entry in listed(root):
        if is_hidden(entry.name):
            ignored.add("hidden", entry.name)
        elif _is_folder(entry):
            folders.append(entry.name)
        else:
            ignored.add("outside_class_folders", entry.name)
            num_loose_images += has_image_extension(entry.name)
    return sorted(folders), num_loose_images


def _images_below(root: Path, name: str, inside: str, ignored: Ignored, *, follow_links: bool) -> Iterator[str]:
    """Paths of one class relative to `root`: sorted by folder, then by file name."""
    if (root / name).is_symlink() and not follow_links:
        ignored.add("symlinked_folder", name)
        return
    found: list[tuple[str, list[str]]] = []
    pending, visited = [name], {_identity(root)}
    while pending:
        folder = pending.pop()
        if follow_links:
            identity = _identity(root / folder)
            if identity in visited:
                continue
            visited.add(identity)
        files = []
        for entry in listed(root / folder):
            path = f"{folder}/{entry.name}"
            if is_hidden(entry.name):
                ignored.add("hidden", path)
            elif _is_folder(entry):
                if entry.is_symlink() and not follow_links:
                    ignored.add("symlinked_folder", path)
                else:
                    pending.append(path)
            elif not has_image_extension(entry.name):
                ignored.add("other_extension", path)
            elif entry.is_symlink() and not follow_links and not os.path.realpath(entry.path).startswith(inside):
                ignored.add("link_outside_source", path)
            else:
                files.append(entry.name)
        found.append((folder, sorted(files)))
    for folder, files in sorted(found):
        for file in files:
            yield f"{folder}/{file}"


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in the order of the file system.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(
            f"{str(folder)!r}: the folder cannot be listed ({error.strerror}): nothing was converted, because images "
            "in it would be missing; make it readable or remove it"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads nowhere or in circles is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is the system's own business and no image or class."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def has_image_extension(name: str) -> bool:
    """Whether a file of this name should be an image."""
    return PurePosixPath(name).suffix.rstrip().lower() in IMAGE_EXTENSIONS


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _no_classes(root: Path, num_loose_images: int, ignored: Ignored) -> str:
    remedy = "put each class into a folder of its own, or give a list file of `path label` lines"
    packed = [name for name in ignored.examples.get("outside_class_folders", ()) if name.lower().endswith(_PACKED)]
    if packed:
        remedy = f"archives such as {packed[0]!r} are not read: decompress those of tars, unpack others; else {remedy}"
    if num_loose_images:
        return (
            f"{str(root)!r}: {num_loose_images} image files lie directly in it and there are no class folders: {remedy}"
        )
    if ignored.counts:
        return f"{str(root)!r}: no class folders in it (ignored: {ignored.summary()}): {remedy}"
    return f"{str(root)!r}: the folder is empty; expected one folder per class"


def _refuse_splits(root: Path, folders: Sequence[str]) -> None:
    """`train` and `val` as the two classes of a dataset are what converting the wrong level looks like."""
    if {name.lower() for name in folders} <= _SPLIT_NAMES and any(
        _is_folder(entry) for name in folders for entry in listed(root / name)
    ):
        raise InputError(
            f"{str(root)!r}: its folders are {', '.join(folders)}, which are splits and not classes: convert each of "
            f"them on its own, first {str(root / folders[0])!r}"
        )
