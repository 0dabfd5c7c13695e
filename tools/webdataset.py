"""Shards in the manner of WebDataset: tars in which the files of a sample share a name up to the first dot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.path_kind import is_dir
from lmdali.tools.class_folders import is_hidden, listed
from lmdali.tools.class_names import TextLabels
from lmdali.tools.list_file import MAX_CLASSES
from lmdali.tools.parquet_files import ALL_SPLITS, split_of
from lmdali.tools.range_reader import RangeReader
from lmdali.tools.source_entries import EntryTable, Ignored, Scan
from lmdali.tools.tar_scan import TarMember, TarWindow, latest_members, open_tar, walk_tar

_IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "ppm", "webp", "bmp", "gif", "tif", "tiff"))
_JSON_FIELDS = ("label", "cls", "class")
_MAX_LABEL_BYTES = 1 << 20
_MAX_NAME = 256
_MAX_SHOWN = 5
_SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "val")
"""Words in the names of tars that tell splits apart."""
_NUMBER_LIKE = re.compile(r"[+-]?[\d.,]+")
_WORD = re.compile(r"[a-z]+")
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_INTEGER = re.compile(rb"\s*([+-]?\d{1,18})\s*")


@dataclass(slots=True)
class _Sample:
    image: TarMember | None = None
    cls: TarMember | None = None
    json: TarMember | None = None


def scan_webdataset(
    path: Path, classes: Sequence[str] | None = None, *, split: str | None = None
) -> tuple[Scan, RangeReader]:
    """Find every image of one tar or a folder of tars, with its label from `.cls` or `.json`: a number, or a name.

    Args:
        path: the tar, or the folder.
        classes: class names in label order; default: the labels' own numbers as names, or all their names, sorted.
        split: which tars of a folder that has several splits: `train` takes `train-0000.tar` and `set-train-0000.tar`,
            `all` takes all of them.

    Returns:
        What was found, in the order (name of the tar, place in it), and the reader for it.

    Raises:
        InputError: a damaged tar, tars of several splits, or an image without a label, with two images beside it, or
            with a label no class has.
        ConfigError: a split of a single tar.
    """
    ignored = Ignored()
    if split is not None and not is_dir(path):
        raise ConfigError(f"{str(path)!r}: --split chooses among the files of a folder, this is a file")
    files = _shard_files(path, ignored) if is_dir(path) else [path]
    if not files:
        raise InputError(f"{str(path)!r}: no .tar in it (ignored: {ignored.summary()})")
    files = _of_split(path, files, split)
    reader = RangeReader.over(files)
    limit = len(classes) if classes is not None else MAX_CLASSES
    entries, names = EntryTable(), TextLabels(repr(str(path)))
    for number, file in enumerate(files):
        with open_tar(str(file)) as window:
            for key, sample in _samples(window, file.stem, ignored).items():
                image = sample.image
                if image is None:
                    ignored.add("no_image", f"{file.stem}/{key}")
                    continue
                label = _label(window, key, sample)
                if entries and isinstance(label, str) != bool(names):
                    raise InputError(
                        f"{window.where}: sample {key!r} has the label {label!r}, and samples before it have "
                        f"{'names' if names else 'numbers'}: labels must be all of one kind"
                    )
                if isinstance(label, str):
                    label = names.number(label)
                elif not 0 <= label < limit:
                    raise InputError(
                        f"{window.where}: sample {key!r} has the label {label}; labels go from 0 to {limit - 1}"
                        + ("" if classes is None else ", the length of the class list")
                    )
                entries.append(f"{file.stem}/{image.name}", label, (number, image.offset, image.num_bytes))
    if not entries:
        raise InputError(f"{str(path)!r}: no samples with an image in it (ignored: {ignored.summary()})")
    if names:
        classes, label_of = names.settle(classes)
        entries.relabel(label_of)
    elif classes is None:
        classes = [str(label) for label in range(int(entries.labels().max()) + 1)]
    return Scan(tuple(classes), entries, ignored, detail=f"tars: {len(files):,}"), reader


def _shard_files(folder: Path, ignored: Ignored) -> list[Path]:
    files = []
    for entry in listed(folder):
        if is_hidden(entry.name):
            ignored.add("hidden", entry.name)
        elif entry.name.endswith(".tar"):
            files.append(folder / entry.name)
        else:
            ignored.add("other_member", entry.name)
    return sorted(files)


def _of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    """The tars of one split; without one asked for all of them, unless their names say that they are of several."""
    words = {file: (name := split_of(file), *_WORD.findall(name.lower())) for file in files}
    if split is not None:
        chosen = [file for file in files if split in words[file]]
        if not chosen and split == ALL_SPLITS:
            return files
        if not chosen:
            shown = ", ".join(sorted({repr(own[0]) for own in words.values()})[:_MAX_SHOWN])
            raise InputError(f"{str(folder)!r}: has no split {split!r}; its tars are {shown}")
        return chosen
    told = [{_SPLITS[word]: word for word in own[1:] if word in _SPLITS} for own in words.values()]
    if len({frozenset(each) for each in told if each}) > 1:  # not where each is of train_val
        splits = {split: word for each in told for split, word in each.items()}
        shown = ", ".join(map(repr, sorted(splits.values())))
        raise InputError(f"{str(folder)!r}: has the splits {shown}: choose one with --split, or --split all")
    return files


def _samples(window: TarWindow, shard: str, ignored: Ignored) -> dict[str, _Sample]:
    """The samples of a shard by their key, in the order in which they begin."""
    samples: dict[str, _Sample] = {}
    for member in latest_members(walk_tar(window, ignored), ignored):
        match = _SAMPLE_NAME.fullmatch(member.name)
        if match is None:
            ignored.add("other_member", f"{shard}/{member.name}")
            continue
        sample, extension = samples.setdefault(match[1], _Sample()), match[2].lower()
        if extension in _IMAGE_EXTENSIONS:
            if sample.image is not None:
                raise InputError(
                    f"{window.where}: sample {match[1]!r} has two images, {sample.image.name!r} and {member.name!r}: "
                    "take one of them out"
                )
            sample.image = member
        elif extension == "cls":
            sample.cls = member
        elif extension == "json":
            sample.json = member
        else:
            ignored.add("other_extension", f"{shard}/{member.name}")
    return samples


def _label(window: TarWindow, key: str, sample: _Sample) -> int | str:
    member = sample.cls or sample.json
    if member is None:
        raise InputError(
            f"{window.where}: sample {key!r} has an image and no label: expected {key}.cls or {key}.json beside it; a "
            "tar of class folders has to be unpacked first"
        )
    text = window.content(member) if member.num_bytes <= _MAX_LABEL_BYTES else b""
    label = _from_cls(text) if sample.cls is not None else _from_json(text)
    if label is None:
        wanted = "a number or a name"
        if sample.cls is None:
            wanted = f"an object with a number or a name as {' or '.join(_JSON_FIELDS)}, the same where it has several"
        raise InputError(f"{window.where}: {member.name!r} holds {text[:60]!r} for a label; expected {wanted}")
    return label


def _from_cls(text: bytes) -> int | str | None:
    match = _INTEGER.fullmatch(text)
    if match is not None:
        return int(match[1])
    try:
        name = text.decode().strip()
    except UnicodeDecodeError:
        return None
    is_name = 0 < len(name) <= _MAX_NAME and name.isprintable() and not _NUMBER_LIKE.fullmatch(name)
    return name if is_name else None


def _from_json(text: bytes) -> int | str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    values = [found[field] for field in _JSON_FIELDS if field in found]
    if not values or values.count(values[0]) != len(values):
        return None
    if isinstance(values[0], str):  # a number in quotes is one
        return _from_cls(values[0].encode(errors="replace"))
    return values[0] if type(values[0]) is int else None
