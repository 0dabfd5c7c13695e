"""Shards in the manner of WebDataset: tars in which the files of a sample share a name up to the first dot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdali.pipeline.errors import InputError
from lmdali.tools.class_folders import is_hidden, listed
from lmdali.tools.list_file import MAX_CLASSES
from lmdali.tools.range_reader import RangeReader
from lmdali.tools.source_entries import EntryTable, Ignored, Scan
from lmdali.tools.tar_scan import TarMember, TarWindow, latest_members, open_tar, walk_tar

_IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "ppm", "webp", "bmp", "gif", "tif", "tiff"))
_JSON_FIELDS = ("label", "cls", "class")
_MAX_LABEL_BYTES = 1 << 20
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_INTEGER = re.compile(rb"\s*([+-]?\d{1,18})\s*")


@dataclass(slots=True)
class _Sample:
    image: TarMember | None = None
    cls: TarMember | None = None
    json: TarMember | None = None


def scan_webdataset(path: Path, classes: Sequence[str] | None = None) -> tuple[Scan, RangeReader]:
    """Find every image of one tar or a folder of tars, with its label from `.cls` or `.json`.

    Args:
        path: the tar, or the folder.
        classes: class names in label order; default: the labels' own numbers as names.

    Returns:
        What was found, in the order (name of the tar, place in it), and the reader for it.

    Raises:
        InputError: a damaged tar, or an image without a label, with two images beside it, or with a label no class has.
    """
    ignored = Ignored()
    files = _shard_files(path, ignored) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{str(path)!r}: no .tar in it (ignored: {ignored.summary()})")
    reader = RangeReader.over(files)
    limit = len(classes) if classes is not None else MAX_CLASSES
    entries = EntryTable()
    for number, file in enumerate(files):
        with open_tar(str(file)) as window:
            for key, sample in _samples(window, file.stem, ignored).items():
                image = sample.image
                if image is None:
                    ignored.add("no_image", f"{file.stem}/{key}")
                    continue
                label = _label(window, key, sample)
                if not 0 <= label < limit:
                    raise InputError(
                        f"{window.where}: sample {key!r} has the label {label}; labels go from 0 to {limit - 1}"
                        + ("" if classes is None else ", the length of the class list")
                    )
                entries.append(f"{file.stem}/{image.name}", label, (number, image.offset, image.num_bytes))
    if not entries:
        raise InputError(f"{str(path)!r}: no samples with an image in it (ignored: {ignored.summary()})")
    if classes is None:
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
                    f"{window.where}: sample {match[1]!r} has two images, {sample.image.name!r} and {member.name!r}"
                )
            sample.image = member
        elif extension == "cls":
            sample.cls = member
        elif extension == "json":
            sample.json = member
        else:
            ignored.add("other_extension", f"{shard}/{member.name}")
    return samples


def _label(window: TarWindow, key: str, sample: _Sample) -> int:
    member = sample.cls or sample.json
    if member is None:
        raise InputError(
            f"{window.where}: sample {key!r} has an image and no label: expected {key}.cls or {key}.json beside it; a "
            "tar of class folders has to be unpacked first"
        )
    text = window.content(member) if member.num_bytes <= _MAX_LABEL_BYTES else b""
    label = _from_cls(text) if sample.cls is not None else _from_json(text)
    if label is None:
        wanted = "an integer" if sample.cls is not None else f"an object with an integer {' or '.join(_JSON_FIELDS)}"
        raise InputError(f"{window.where}: {member.name!r} holds {text[:60]!r} for a label; expected {wanted}")
    return label


def _from_cls(text: bytes) -> int | None:
    match = _INTEGER.fullmatch(text)
    return None if match is None else int(match[1])


def _from_json(text: bytes) -> int | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    values = [found[field] for field in _JSON_FIELDS if field in found]
    return values[0] if len(values) > 0 and type(values[0]) is int and values.count(values[0]) == len(values) else None
