"""Reading a list file: one `path label` line per image, as Caffe's tools take them."""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.system_error import system_says
from lmdali.tools.source_entries import EntryTable, Ignored, Scan

MAX_CLASSES = 1_000_000
"""Labels number the classes, so a label of a billion would ask for a billion class names."""

_LOOKED_AT = 32
"""Files of a list, from all over it, that are looked for before the work begins."""

_INTEGER = re.compile(rb"[+-]?\d+")


def scan_list_file(path: Path, root: Path, classes: Sequence[str] | None = None) -> Scan:
    """Parse a list file; images are not looked at.

    A line is split at its last space or tab, so paths may contain spaces; empty lines are skipped.

    Args:
        path: the list file.
        root: folder that relative paths start from; paths below it are stored relative to it.
        classes: class names in label order; default: the labels' own numbers as names.

    Raises:
        InputError: a line that is not `path label`, a label that no class has, a path given twice, no line at all.
    """
    entries = EntryTable()
    hashes, numbers = array("q"), array("q")
    prefix = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118
    limit = len(classes) if classes is not None else MAX_CLASSES
    try:
        with path.open("rb") as file:
            if b"\x00" in file.read(4096):
                raise InputError(f"{str(path)!r}: a binary file; expected a text file of `path label` lines")
            file.seek(0)
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                line = line.rstrip(b"\r\n")
                if not line.strip():
                    continue
                name, label = _parsed(line, f"{str(path)!r}, line {number}", limit, has_classes=classes is not None)
                name = name.removeprefix(prefix)
                entries.append(name, label)
                hashes.append(hash(posixpath.normpath(name)))
                numbers.append(number)
    except OSError as error:
        raise InputError(f"{str(path)!r}: the list file cannot be read ({system_says(error)})") from error
    if not entries:
        raise InputError(f"{str(path)!r}: the list file has no lines; expected `path label` lines")
    _refuse_duplicates(path, entries, hashes, numbers)
    if classes is None:
        classes = [str(label) for label in range(int(entries.labels().max()) + 1)]
    return Scan(tuple(classes), entries, Ignored())


def refuse_other_root(path: Path, root: Path, scan: Scan) -> None:
    """A list whose paths start from another folder: every image would be a reject, `vanished`.

    Args:
        path: the list file, for the message.
        root: folder that its paths start from.
        scan: what is in it.

    Raises:
        InputError: not one of some files from all over it is there; a part that is gone makes rejects, as ever.
    """
    num_entries = len(scan.entries)
    count = min(num_entries, _LOOKED_AT)
    looked_at = [scan.entries[number * num_entries // count].path for number in range(count)]
    if not any(os.path.lexists(os.path.join(root, name)) for name in looked_at):  # noqa: PTH118
        raise InputError(
            f"{str(path)!r}: {looked_at[0]!r} is not in {str(root)!r}, nor is any other of {count} files from all over "
            "the list: paths start from the list's folder, or from --root"
        )


def _parsed(line: bytes, where: str, limit: int, *, has_classes: bool) -> tuple[str, int]:
    if b"\x00" in line:
        raise InputError(f"{where}: a zero byte; expected a text file of `path label` lines")
    split = max(line.rfind(b" "), line.rfind(b"\t"))
    name, label = line[: max(split, 0)], line[split + 1 :]
    if not name or not _INTEGER.fullmatch(label):
        raise InputError(f"{where}: {_shown(line)} is not `path label` with an integer label")
    value = int(label) if len(label) < 20 else limit
    if value < 0:
        raise InputError(f"{where}: label {_shown(label)} is negative; labels count classes from 0: leave the line out")
    if value >= limit:
        bound = f"the class list has {limit} names" if has_classes else f"labels go up to {limit - 1}"
        raise InputError(f"{where}: label {_shown(label)} is too large; {bound}, counted from 0")
    return os.fsdecode(name), value


def _refuse_duplicates(path: Path, entries: EntryTable, hashes: array[int], numbers: array[int]) -> None:
    order = np.argsort(np.frombuffer(hashes, np.int64), kind="stable")
    ordered = np.frombuffer(hashes, np.int64)[order]
    # Equal hashes are nearly always equal paths; the paths themselves decide.
    for position in np.flatnonzero(ordered[1:] == ordered[:-1]).tolist():
        first, second = int(order[position]), int(order[position + 1])
        if posixpath.normpath(entries[first].path) == posixpath.normpath(entries[second].path):
            raise InputError(
                f"{str(path)!r}, lines {numbers[first]} and {numbers[second]}: {entries[second].path!r} is listed "
                f"twice, with labels {entries[first].label} and {entries[second].label}: keep one of the lines"
            )


def _shown(text: bytes) -> str:
    return repr(os.fsdecode(text[:80])) + ("..." if len(text) > 80 else "")
