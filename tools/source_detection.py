"""What kind of source a path is, by its kind, its first bytes, and the names of what is in it."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.path_kind import is_dir, is_file
from lmdali.pipeline.system_error import system_says
from lmdali.tools.caffe_lmdb import looks_like_lmdb
from lmdali.tools.class_archives import CLASS_ARCHIVE
from lmdali.tools.class_folders import is_hidden, listed
from lmdali.tools.numbered_images import NUMBERED_IMAGE
from lmdali.tools.parquet_files import DATA_FOLDER, looks_like_parquet
from lmdali.tools.source_entries import Ignored
from lmdali.tools.tar_scan import open_tar, refuse_compressed, walk_tar

SourceFormat = Literal["auto", "folder", "list", "ilsvrc-train", "ilsvrc-val", "webdataset", "parquet", "caffe-lmdb"]
SOURCE_FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)

_HEAD_BYTES = 4096
_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
    (b"\xff\xd8\xff", "a single JPEG image"),
    (b"\x89PNG", "a single PNG image"),
    (b"GIF8", "a single GIF image"),
    (b"RIFF", "a single WebP image, or sound or film"),
)
"""What people have by mistake; only what begins like none of these and has no zero byte may be a list file."""


def detect_format(path: Path) -> SourceFormat:
    """What a path looks like; never "auto".

    Raises:
        InputError: like nothing that can be converted; says what it looks like and what there is.
    """
    if not is_dir(path) and not is_file(path):
        raise InputError(f"{str(path)!r}: neither a folder nor a regular file: {_expected()}")
    if looks_like_lmdb(path):
        return "caffe-lmdb"
    if is_dir(path):
        return _folder_format(path)
    if looks_like_parquet(path):
        return "parquet"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read ({system_says(error)})") from None
    refuse_compressed(head, repr(str(path)))
    if _begins_like_a_tar(head):
        return _tar_format(path)
    for magic, kind in _OTHER_KINDS:
        if head.startswith(magic):
            unpack = "unpack it and give its folder; " if kind.endswith(" archive") else ""
            raise InputError(f"{str(path)!r}: a binary file, {kind}: {unpack}{_expected()}")
    if b"\x00" in head:
        raise InputError(f"{str(path)!r}: a binary file of unknown kind: {_expected()}")
    return "list"


def _folder_format(path: Path) -> SourceFormat:
    entries = [entry for entry in listed(path) if not is_hidden(entry.name)]
    names = [entry.name for entry in entries]
    folders = [entry.name for entry in entries if entry.is_dir()]
    if looks_like_parquet(path):
        if others := [name for name in folders if name != DATA_FOLDER]:
            raise InputError(
                f"{str(path)!r}: holds folders ({others[0]!r}) and Parquet files: say which are meant, with --format "
                "folder or parquet"
            )
        return "parquet"
    if not any(name.endswith(".tar") or NUMBERED_IMAGE.fullmatch(name) for name in names):
        return "folder"
    challenges = sorted(name for name in names if name.startswith("ILSVRC") and name.endswith(".tar"))
    if challenges:
        raise InputError(
            f"{str(path)!r}: holds {', '.join(challenges[:4])}: convert each of them on its own, first "
            f"{str(path / challenges[0])!r}"
        )
    found = _by_name(names)
    if folders and found != "ilsvrc-val":
        archive = next(name for name in names if name.endswith(".tar"))
        raise InputError(
            f"{str(path)!r}: holds folders ({folders[0]!r}) and archives ({archive!r}): say which are meant, with "
            f"--format folder or {found}"
        )
    return found


def _tar_format(path: Path) -> SourceFormat:
    with open_tar(str(path)) as window:
        first = next(walk_tar(window, Ignored()), None)
    return "webdataset" if first is None else _by_name([posixpath.basename(first.name)])


def _by_name(names: Iterable[str]) -> SourceFormat:
    for name in names:
        if CLASS_ARCHIVE.fullmatch(name):
            return "ilsvrc-train"
        if NUMBERED_IMAGE.fullmatch(name):
            return "ilsvrc-val"
    return "webdataset"


def _begins_like_a_tar(head: bytes) -> bool:
    block = head[: tarfile.BLOCKSIZE]
    if len(block) == tarfile.BLOCKSIZE and not block.strip(b"\x00"):
        return True  # an empty archive
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _expected() -> str:
    return (
        f"expected one of {', '.join(SOURCE_FORMATS[1:])} (--format), such as a folder of class folders or a list file"
    )
