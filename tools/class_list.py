"""Class lists: names in label order, from wherever a training set has them."""

from __future__ import annotations

import os
from pathlib import Path

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.manifest import MANIFEST_FILE, load_manifest
from lmdali.tools.class_folders import class_folder_names
from lmdali.tools.class_names import check_class_names


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
    check_class_names(names, repr(str(path)))
    return names
