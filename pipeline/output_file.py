"""A file that a person asked for by name: refused before the work is done, written with the folders that it lacks."""

from __future__ import annotations

from pathlib import Path

from lmdali.pipeline.errors import StorageError
from lmdali.pipeline.files import storage_errors, write_atomic
from lmdali.pipeline.output_check import try_to_write
from lmdali.pipeline.path_kind import is_dir


def check_output_file(path: Path) -> None:
    """Refuse a name that no file could be written under, before what goes there is measured, trained or drawn.

    Nothing is made yet: the folders above it may be missing, where they can be made.

    Raises:
        StorageError: it is a directory, or its folder cannot be written: read-only, full, or not allowed.
    """
    if is_dir(path):
        raise StorageError(f"{path}: is a directory: name a file in it")
    try_to_write(path.parent)


def make_parents(path: Path) -> None:
    """Make the folders above a file, where they are missing.

    Raises:
        StorageError: they cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_output(path: Path, payload: bytes) -> None:
    """`write_atomic`, with the folders above the file.

    Raises:
        StorageError: the disk is full or refuses; what was there under the name is as it was.
    """
    make_parents(path)
    write_atomic(path, payload)
