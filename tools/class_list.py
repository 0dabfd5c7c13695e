"""Class lists: names in label order, from wherever a training set has them."""

from __future__ import annotations

import os
from pathlib import Path

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.manifest import MANIFEST_FILE, load_manifest
from lmdali.pipeline.path_kind import exists, is_dir, is_file
from lmdali.pipeline.system_error import system_says
from lmdali.tools.class_archives import class_archive_names
from lmdali.tools.class_folders import class_folder_names
from lmdali.tools.class_names import check_class_names
from lmdali.tools.source_detection import detect_format


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """The class list of a training set, in label order.

    Args:
        path: a converted dataset, a folder of class folders, the training archive of ILSVRC, or a text file with one
            class name per line.

    Raises:
        InputError: it is none of these, empty, or names a class twice.
    """
    path = Path(path)
    if path.name == MANIFEST_FILE:
        path = path.parent
    if exists(path / MANIFEST_FILE):
        return load_manifest(path).class_names
    kind = detect_format(path) if is_dir(path) or is_file(path) else "list"
    if kind == "folder":
        return class_folder_names(path)
    if kind == "ilsvrc-train":
        return class_archive_names(path)
    if kind != "list":
        raise InputError(f"{str(path)!r}: looks like {kind}, which has no class names: use those of its training set")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r}: the class list cannot be read ({system_says(error)})") from error
    lines = (line.rstrip(b"\r") for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    names = tuple(os.fsdecode(line) for line in lines if line.strip())
    check_class_names(names, repr(str(path)))
    return names
