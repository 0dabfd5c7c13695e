"""The validation and test images of ILSVRC as they come: numbered files whose labels are elsewhere.

The number in a file name counts, not the place in the archive: the archive of 2012 is not in order.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.tools.class_folders import is_hidden, listed
from lmdali.tools.class_names import refuse_extra_classes
from lmdali.tools.devkit import Devkit, find_devkit, parse_ground_truth, read_devkit, read_ground_truth
from lmdali.tools.file_reader import FileReader
from lmdali.tools.image_patch import ImagePatch
from lmdali.tools.range_reader import RangeReader
from lmdali.tools.source_entries import EntryTable, Ignored, Scan
from lmdali.tools.tar_scan import latest_members, open_tar, walk_tar

NUMBERED_IMAGE = re.compile(r"(ILSVRC20\d\d)_(val|test)_(\d{8})\.(?:JPE?G|jpe?g)")
"""File name of an image: challenge, split and number."""

_Place = tuple[int, int, int]


@dataclass(frozen=True)
class LabelFiles:
    """Where labels are.

    Attributes:
        devkit: the development kit; None means the one beside the images.
        ground_truth: class ids of the images; None means those of the kit, or for test images the file beside them.
    """

    devkit: Path | None = None
    ground_truth: Path | None = None


class _Images:
    """Images by number; all of one challenge and split."""

    def __init__(self, where: str, ignored: Ignored) -> None:
        self.where, self._ignored = where, ignored
        self.set: tuple[str, str] | None = None
        self.found: dict[int, tuple[str, _Place | None]] = {}

    def add(self, path: str, place: _Place | None) -> None:
        name = posixpath.basename(path)
        match = NUMBERED_IMAGE.fullmatch(name)
        if match is None:
            self._ignored.add("hidden" if is_hidden(name) else "other_member", path)
            return
        self.set = self.set or (match[1], match[2])
        if self.set != (match[1], match[2]):
            raise InputError(f"{self.where}: has images of {'_'.join(self.set)} and {path!r}: separate them")
        number = int(match[3])
        if number in self.found:
            both = f"{self.found[number][0]!r}, {path!r}"
            raise InputError(f"{self.where}: image {number} is there twice: {both}: take one of them out")
        self.found[number] = name, place


def scan_numbered_images(
    path: Path, classes: Sequence[str] | None = None, *, labels: LabelFiles, patch: Path | None = None
) -> tuple[Scan, RangeReader | FileReader]:
    """Find the numbered images of a tar or folder, in the order of their numbers, and their labels.

    Args:
        path: a tar of `ILSVRC2012_val_00000001.JPEG` and so on, or a folder of them.
        classes: class names in label order, from a training set; default: the sorted WordNet ids of the kit.
        labels: where labels are.
        patch: for a tar: an archive of images that replace those of the same file name.

    Returns:
        What was found, and the reader for it.

    Raises:
        InputError: images are missing or have no label, or the classes are not those of the kit.
        ConfigError: a patch for a folder.
    """
    ignored = Ignored()
    images = _Images(repr(str(path)), ignored)
    reader: RangeReader | FileReader
    if is_dir(path):
        if patch is not None:
            raise ConfigError("a patch is for archives: unpack it over the folder, or leave it out")
        reader = FileReader(os.path.abspath(path))  # noqa: PTH100
        for entry in listed(path):
            images.add(entry.name, None)
    else:
        reader = RangeReader.over([path] if patch is None else [path, patch])
        with open_tar(str(path)) as window:
            for member in latest_members(walk_tar(window, ignored), ignored):
                images.add(member.name, (0, member.offset, member.num_bytes))
    if images.set is None:
        raise InputError(f"{str(path)!r}: no numbered images in it (ignored: {ignored.summary()})")
    kit, ids, truth = _labels(path, images.set, labels)
    _refuse_other_numbers(images, len(ids), truth)
    classes = kit.class_names if classes is None else classes
    _refuse_other_classes(classes, kit, repr(str(path)))
    patches = ImagePatch(patch, re.compile("_".join(images.set) + r"_\d{8}\.\w+"), 1, ignored)
    label_of = {name: label for label, name in enumerate(classes)}
    entries = EntryTable()
    for number in range(1, len(ids) + 1):
        name, place = images.found[number]
        label = label_of[kit.wnids[ids[number - 1] - 1]]
        entries.append(name, label, None if place is None else patches.place(name, place))
    patches.refuse_leftover(repr(str(path)))
    detail = ", ".join(filter(None, (f"labels from {truth}", patches.detail())))
    return Scan(tuple(classes), entries, ignored, variant=patches.variant, detail=detail), reader


def _labels(path: Path, images: tuple[str, str], labels: LabelFiles) -> tuple[Devkit, list[int], str]:
    """The kit, the class ids of all images, and the name of the file that they are from."""
    challenge, split = images
    kit_path = labels.devkit or find_devkit(path, challenge)
    kit = read_devkit(kit_path, challenge)
    truth = labels.ground_truth
    if truth is None and split == "test":
        truth = Path(os.path.abspath(path)).parent / f"{challenge}_test_ground_truth.txt"  # noqa: PTH100
        if not exists(truth):
            raise InputError(
                f"{str(path)!r}: test images, and {str(truth)!r} is not there: say which file has their labels "
                "(--ground-truth); those of 2012 were never published"
            )
    text = kit.validation if truth is None else read_ground_truth(truth)
    where = f"{kit.where}, ground truth" if truth is None else repr(str(truth))
    return kit, parse_ground_truth(text, where, len(kit.wnids)), (truth or kit_path).name


def _refuse_other_numbers(images: _Images, count: int, truth: str) -> None:
    missing = [number for number in range(1, count + 1) if number not in images.found]
    extra = sorted(number for number in images.found if not 1 <= number <= count)
    if missing or extra:
        found = [f"{len(missing)} of them are missing, first number {missing[0]}"] if missing else []
        found += [f"{len(extra)} have no label, first number {extra[0]}"] if extra else []
        raise InputError(
            f"{images.where}: {truth} has labels of images 1 to {count}; {', and '.join(found)}: use the ground truth "
            "of these images, or unpack or download them again"
        )


def _refuse_other_classes(classes: Sequence[str], kit: Devkit, where: str) -> None:
    refuse_extra_classes(kit.wnids, classes, where, "classes of the development kit")
    unknown = sorted(set(classes) - set(kit.wnids))
    if unknown:
        raise InputError(
            f"{where}: {len(unknown)} names of the class list are no classes of the development kit {kit.where}, first "
            f"{unknown[0]!r}: the class list belongs to other data"
        )
