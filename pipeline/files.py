"""Files that are whole or absent: written aside, synced, renamed; and JSON read with the errors a person can act on."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import InputError, IntegrityError, StorageError
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.system_error import system_says

MAX_JSON_BYTES = 256_000_000
"""A manifest names shards, not records: 14 million records need 100 kB. More than this is not a manifest."""


def write_atomic(path: Path, payload: bytes) -> None:
    """Publish `payload` under `path` in one step that survives a power cut.

    Raises:
        StorageError: the disk is full or refuses; nothing is left under the final name that was not there before.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with storage_errors(path):
        try:
            with aside.open("xb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_synced(path: Path, payload: bytes) -> None:
    """Write a file and make its content durable; its name is once its directory is synced.

    For files that count for nothing until another one appears that says so.
    """
    with storage_errors(path), path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, document: dict[str, Any]) -> None:
    """`write_atomic` of indented JSON with a final newline; NaN is refused."""
    write_atomic(path, _json_bytes(document, indent=1) + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        InputError: there is no such file.
        IntegrityError: it is too large or not a JSON object.
        StorageError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise IntegrityError(f"{path}: {size} bytes are more than any manifest has: this is another file")
        payload = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise StorageError(f"{path}: {system_says(error)}") from error
    return parse_json(payload, path)


def parse_json(payload: bytes, place: object) -> dict[str, Any]:
    """A JSON object from the bytes of a file; errors name its place.

    Raises:
        IntegrityError: it is no JSON object.
    """
    try:
        document = json.loads(payload, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{place}: not valid JSON ({error}): the file is damaged") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{place}: found a JSON {type(document).__name__}, expected an object")
    return document


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its own `canonical_digest` as its last field, by which `read_sealed` finds damage."""
    return document | {"digest": canonical_digest(document)}


def read_sealed(path: Path) -> dict[str, Any]:
    """A document that `write_json` wrote of a `seal`ed one, or of one without a seal by an older version.

    Raises:
        InputError: there is no such file.
        IntegrityError: any byte of it was changed (white space and numbers alone, where it has no seal).
    """
    document = read_json(path)
    content = {key: value for key, value in document.items() if key != "digest"}
    if not is_as_written(path) or ("digest" in document and canonical_digest(content) != document["digest"]):
        raise IntegrityError(f"{path}: differs from what was written: it was edited or damaged")
    return document


def is_as_written(path: Path) -> bool:
    """Whether a JSON file has the form that `write_json` gives its content, down to the white space.

    Raises:
        LmdaliError: as `read_json`.
    """
    try:
        return path.read_bytes() == _json_bytes(read_json(path), indent=1) + b"\n"
    except (ValueError, RecursionError):  # what JSON allows and we never write
        return False


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers differ in which of two equal keys they take: a file that has any is refused."""
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return document


def canonical_digest(document: dict[str, Any]) -> str:
    """sha256 of a document that does not depend on key order or white space."""
    return hashlib.sha256(_json_bytes(document, sort_keys=True, separators=(",", ":"))).hexdigest()


def _json_bytes(document: dict[str, Any], **form: Any) -> bytes:
    # File names may hold bytes that are no UTF-8, lone surrogates in Python; their backslash escapes are JSON's own.
    return json.dumps(document, ensure_ascii=False, allow_nan=False, **form).encode("utf-8", "backslashreplace")


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as the content of a `.npy` file."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """fsync one file; a failure means that its data must be treated as lost."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """fsync a directory, which makes the names created or renamed in it durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that names the file and, for a full disk, what is free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        raise StorageError(f"{path}: {system_says(error)}") from error


def disk_full(path: Path) -> StorageError:
    """The error for a disk without room, with what is left on it."""
    return StorageError(
        f"{path}: the disk is full ({free_bytes(path.parent)} bytes free): make room and run the command again, with "
        "--resume where it has that"
    )


def free_bytes(directory: Path) -> int:
    """Bytes a user may still write on the filesystem of `directory` (or of its nearest existing parent)."""
    while not exists(directory):
        directory = directory.parent
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
