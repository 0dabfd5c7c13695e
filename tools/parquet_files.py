"""Which Parquet files a path stands for: one file, or all files of one split of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.path_kind import is_dir, is_file
from lmdali.pipeline.system_error import system_says

DATA_FOLDER = "data"
"""Where a repository of the Hugging Face Hub keeps them."""

ALL_SPLITS = "all"
"""What is asked for in place of a split, where none has that name: every file."""

_EXTENSION = ".parquet"
_MAGICS = (b"PAR1", b"PARE")
_MAX_SHOWN = 3
# `train-00000-of-00294.parquet`, with a hash behind it in older ones.
_NUMBERED = re.compile(r"(.+?)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?")
_SERIAL = re.compile(r"(.*?)[-_.]?\d*")


def looks_like_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file, by its name or first bytes, or a folder with such files in it or its `data`."""
    try:
        if is_dir(path):
            return bool(_listed(path))
        if path.suffix == _EXTENSION and is_file(path):
            return True
        with path.open("rb") as file:
            return file.read(4) in _MAGICS
    except OSError:
        return False


def find_parquet_files(path: Path, split: str | None = None) -> list[Path]:
    """The files of a source, sorted by name.

    Args:
        path: a file, or a folder of the files of one split.
        split: "train", "validation", ...: which one to take of a folder with several; "all" takes all of them.

    Raises:
        InputError: there are none, they are of several splits, or some that their names count are not there.
        ConfigError: a split of a single file.
    """
    if not is_dir(path):
        if split is not None:
            raise ConfigError(f"{str(path)!r}: --split chooses among the files of a folder, this is a file")
        return [path]
    try:
        files = _listed(path)
    except OSError as error:
        raise InputError(f"{str(path)!r}: the folder cannot be listed ({system_says(error)})") from error
    if not files:
        raise InputError(f"{str(path)!r}: no {_EXTENSION} file in the folder or in its folder {DATA_FOLDER!r}")
    splits = sorted({split_of(file) for file in files})
    if split is None and len(splits) > 1:
        raise InputError(f"{str(path)!r}: has the splits {_shown(splits)}: choose one with --split, or --split all")
    if split == ALL_SPLITS and ALL_SPLITS not in splits:
        split = None
    if split is not None and split not in splits:
        raise InputError(f"{str(path)!r}: has no split {split!r}; it has {_shown(splits)}")
    chosen = [file for file in files if split is None or split_of(file) == split]
    _refuse_gaps(path, chosen)
    return chosen


def _listed(folder: Path) -> list[Path]:
    for place in (folder, folder / DATA_FOLDER):
        if is_dir(place):
            with os.scandir(place) as entries:
                names = [e.name for e in entries if e.name.endswith(_EXTENSION) and not e.name.startswith(".")]
            if names:
                return [place / name for name in sorted(names, key=os.fsencode)]
    return []


def split_of(file: Path) -> str:
    """A file's name without what counts files.

    `train` of `train-00000-of-00294.parquet`, `train-0.tar` and `train.parquet`; "" of `0000.parquet`.
    """
    numbered = _NUMBERED.fullmatch(file.stem)
    serial = numbered or _SERIAL.fullmatch(file.stem)
    return serial[1] if serial else file.stem


def _refuse_gaps(folder: Path, files: Sequence[Path]) -> None:
    """A download that ended early must not become a smaller dataset without a word, nor two of them a larger one."""
    found: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        if numbered := _NUMBERED.fullmatch(file.stem):
            found.setdefault(numbered[1], []).append((int(numbered[3]), int(numbered[2])))
    for split, parts in found.items():
        numbers = {number for _, number in parts}
        count = max(count for count, _ in parts)
        missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
        if missing < count:
            raise InputError(
                f"{str(folder)!r}: {len(numbers)} files of the split {split!r}, their names count {count} "
                f"(number {missing} is not there): fetch the rest, or give single files"
            )
        if len(parts) > count:
            raise InputError(
                f"{str(folder)!r}: {len(parts)} files of the split {split!r}, their names count {count}: "
                "keep those of one version"
            )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_MAX_SHOWN])) + (", ..." if len(names) > _MAX_SHOWN else "")
