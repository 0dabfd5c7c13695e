"""Two datasets that are hardly what was meant: the signs, and what is none."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from lmdali.pipeline.dataset_place import Place
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.tools.dataset_pair import SameDatasetWarning, SwappedDatasetsWarning, swap_sign, tell_of_pair


@pytest.fixture(scope="module")
def manifest(small_jpeg_dataset: Path) -> Manifest:
    return load_manifest(small_jpeg_dataset)


def sized(manifest: Manifest, times: int = 1, kind: str = "folder") -> Manifest:
    """The same dataset with so many times the records, made of something."""
    return replace(manifest, num_records=manifest.num_records * times, source={**manifest.source, "kind": kind})


@pytest.mark.parametrize(
    ("train", "val", "swapped"),
    [
        ("data/val", "data/train", True),
        ("imagenet-validation", "imagenet_train", True),
        ("s3://bucket/test?key=train", "s3://bucket/training?key=val", True),
        ("train-run/data/holdout/val", "train-run/data/train", True),
        ("data/train", "data/val", False),
        ("data/a", "data/b", False),
        ("test-set/train", "test-set/val", False),
        ("trainval/2012", "trainval/2013", False),
        ("val-and-train/1", "train/2", False),
        ("evaluation/first", "evaluation/second", False),
        ("contrast", "valley", False),
    ],
)
def test_names_say_which_is_which(train: str, val: str, swapped: bool, manifest: Manifest) -> None:
    assert bool(swap_sign(train, val, (manifest, manifest))) == swapped


@pytest.mark.parametrize(("times", "swapped"), [((1, 3), True), ((1, 2), False), ((3, 1), False)])
def test_sizes_say_so_where_they_are_far_apart(times: tuple[int, int], swapped: bool, manifest: Manifest) -> None:
    pair = sized(manifest, times[0]), sized(manifest, times[1])
    assert bool(swap_sign(Path("a"), Path("b"), pair)) == swapped


def test_archives_leave_no_doubt(manifest: Manifest) -> None:
    archives = sized(manifest, kind="ilsvrc-val"), sized(manifest, kind="ilsvrc-train")
    assert swap_sign("a", "b", archives) == "TRAIN was made of ilsvrc-val archives, VAL of ilsvrc-train"
    assert swap_sign("a", "b", archives[::-1]) == ""


def test_one_warning_at_most_is_given_and_it_names_both(manifest: Manifest, jpeg_dataset: Path) -> None:
    train: Place = Path("data/val")
    other = sized(load_manifest(jpeg_dataset))
    with pytest.warns(SameDatasetWarning, match="one dataset"):
        tell_of_pair(train, Path("data/train"), (manifest, manifest))
    with pytest.warns(
        SwappedDatasetsWarning, match=r"TRAIN is .*/data/val, VAL is .*/data/train; the training set"
    ) as seen:
        tell_of_pair(train, Path("data/train"), (manifest, other))
    assert [Path(one.filename).name for one in seen] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_of_pair(Path("data/train"), train, (manifest, other))
