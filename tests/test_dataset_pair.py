"""Two datasets that are hardly what was meant: the signs, and what is none."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from lmdali.pipeline.dataset_identity import DatasetIdentity
from lmdali.pipeline.dataset_place import Place
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.dataset_pair import SameDatasetWarning, SwappedDatasetsWarning, swap_sign, tell_of_pair


@pytest.fixture(scope="module")
def identity(small_jpeg_dataset: Path) -> DatasetIdentity:
    return DatasetIdentity.of(load_manifest(small_jpeg_dataset))


def sized(identity: DatasetIdentity, times: int = 1, kind: str = "folder") -> DatasetIdentity:
    """The same dataset with so many times the records, made of something."""
    return replace(identity, num_records=identity.num_records * times, source_kind=kind)


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
def test_names_say_which_is_which(train: str, val: str, swapped: bool, identity: DatasetIdentity) -> None:
    assert bool(swap_sign(train, val, (identity, identity))) == swapped


@pytest.mark.parametrize(("times", "swapped"), [((1, 3), True), ((1, 2), False), ((3, 1), False)])
def test_sizes_say_so_where_they_are_far_apart(
    times: tuple[int, int], swapped: bool, identity: DatasetIdentity
) -> None:
    pair = sized(identity, times[0]), sized(identity, times[1])
    assert bool(swap_sign(Path("a"), Path("b"), pair)) == swapped


def test_archives_leave_no_doubt(identity: DatasetIdentity) -> None:
    archives = sized(identity, kind="ilsvrc-val"), sized(identity, kind="ilsvrc-train")
    assert swap_sign("a", "b", archives) == "TRAIN was made of ilsvrc-val archives, VAL of ilsvrc-train"
    assert swap_sign("a", "b", archives[::-1]) == ""


def test_one_warning_at_most_is_given_and_it_names_both(identity: DatasetIdentity, jpeg_dataset: Path) -> None:
    train: Place = Path("data/val")
    other = sized(DatasetIdentity.of(load_manifest(jpeg_dataset)))
    with pytest.warns(SameDatasetWarning, match="one dataset"):
        tell_of_pair(train, Path("data/train"), (identity, identity))
    with pytest.warns(
        SwappedDatasetsWarning, match=r"TRAIN is .*/data/val, VAL is .*/data/train; the training set"
    ) as seen:
        tell_of_pair(train, Path("data/train"), (identity, other))
    assert [Path(one.filename).name for one in seen] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_of_pair(Path("data/train"), train, (identity, other))
