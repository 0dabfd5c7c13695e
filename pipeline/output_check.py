"""Whether a directory can be an output, before it is known what will go there: scanning a source takes minutes.

What needs the plan, its size and its shards, is for `dataset_writer.py` and `conversion_run.py` to say.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE
from lmdali.pipeline.errors import InputError, StorageError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.manifest import MANIFEST_FILE, RECORDS_FILE, REJECTS_FILE, SHARDS_DIRECTORY
from lmdali.pipeline.output_lock import LOCK_FILE, STAGING_DIRECTORY, hold_whole
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.pipeline.shard_output import PLAN_FILE
from lmdali.pipeline.shard_writer import TEMPORARY_SUFFIX

_OURS = (MANIFEST_FILE, STATISTICS_FILE, MEAN_FILE, RECORDS_FILE, REJECTS_FILE, SHARDS_DIRECTORY, STAGING_DIRECTORY)
_BLOCK_BYTES = 4096


def check_output(directory: Path, *, is_part: bool, resume: bool, overwrite: bool) -> None:
    """Refuse an output that no run could use, whatever its source is.

    Args:
        directory: the output; it and its parents may be missing, where they can be made.
        is_part: for a part of a conversion, which others may have begun there.
        resume, overwrite: as of `DatasetWriter.hold`.

    Raises:
        InputError: it is no directory, has a name that LMDB cannot take, has files of others, or has content and
            neither flag is given.
        LockedError: another run holds it.
        StorageError: it cannot be written: read-only, full, or not allowed.
    """
    refuse_undecodable(directory)
    refuse_foreign(directory, is_part=is_part, overwrite=overwrite)
    if not is_part and not (resume or overwrite):
        refuse_content(directory)
    # A finished dataset on a read-only disk may be resumed: there is nothing to do.
    if not (resume and not overwrite and exists(directory / MANIFEST_FILE)):
        try_to_write(directory, needs_room=not overwrite)


def refuse_undecodable(directory: Path) -> None:
    """Raises InputError for a path that is no UTF-8 text, as sources may have: the LMDB library opens no such path."""
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{str(directory)!r}: shards cannot be made at a path that is not UTF-8: choose another output"
        ) from None


def refuse_foreign(directory: Path, *, is_part: bool, overwrite: bool) -> None:
    """Raises InputError where the output is no directory, or holds what a run must not touch."""
    if not exists(directory):
        return
    if not is_dir(directory):
        raise InputError(f"{directory}: exists and is not a directory: choose another output")
    found = _names_in(directory)
    foreign = [name for name in found if name not in _OURS and not is_leftover(name)]
    if foreign:
        raise InputError(f"{directory}: has files that are not ours ({foreign[0]!r}): choose an empty output")
    if is_part and overwrite and MANIFEST_FILE in found:
        raise InputError(
            f"{directory}: holds a finished dataset, which no part may take apart: use --overwrite without "
            "--part, or choose another output"
        )


def refuse_content(directory: Path) -> None:
    """Raises InputError, or LockedError where another run is at it, if there is anything in the output."""
    if exists(directory) and (found := _names_in(directory)):
        if exists(directory / STAGING_DIRECTORY / LOCK_FILE):
            with hold_whole(directory, writable=False):
                pass
        raise already_holds(directory, "a finished dataset" if MANIFEST_FILE in found else "an unfinished conversion")


def already_holds(directory: Path, state: str) -> InputError:
    """The error for an output with content, if neither flag is given."""
    return InputError(f"{directory}: already holds {state}: add --resume or --overwrite, or choose another output")


def is_leftover(name: str) -> bool:
    """Whether a file is one that a killed run had not yet renamed to one of ours."""
    ours = (*_OURS, PLAN_FILE)
    return name.endswith(TEMPORARY_SUFFIX) and any(name.startswith(f".{final}.") for final in ours)


def _names_in(directory: Path) -> list[str]:
    with storage_errors(directory):
        return sorted(entry.name for entry in directory.iterdir())


def try_to_write(directory: Path, *, needs_room: bool = True) -> None:
    """Write a block where an output will be, or in the nearest parent that there is, and take it back.

    Args:
        directory: the output; it and its parents may be missing, where they can be made.
        needs_room: a full disk is refused, too.

    Raises:
        StorageError: it cannot be written: read-only, full, or not allowed.
    """
    place = directory
    while not exists(place) and not place.is_symlink():
        place = place.parent
    if not is_dir(place):
        raise StorageError(f"{directory}: cannot be made, because {place} is no directory: choose another output")
    # Without a name where the kernel can do that; else with one that the next run would clear away.
    with (
        storage_errors(directory),
        tempfile.TemporaryFile(dir=place, prefix=f".{MANIFEST_FILE}.", suffix=TEMPORARY_SUFFIX, buffering=0) as probe,
    ):
        if needs_room:
            os.posix_fallocate(probe.fileno(), 0, _BLOCK_BYTES)
