"""Shards in the manner of WebDataset: which files make a sample, and which label it gets."""

from __future__ import annotations

import os
from pathlib import Path

import fake_ilsvrc as fake
import pytest

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.sources import Source, open_source


def write(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(fake.tar_bytes(members.items()))
    return path


def listed(source: Source) -> list[tuple[str, int, bytes]]:
    return [(entry.path, entry.label, source.read(entry)) for entry in source.entries]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, "webdataset", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_are_images_with_their_label(tmp_path: Path) -> None:
    path = write(
        tmp_path / "train-000.tar",
        {
            "b.jpg": b"1",
            "b.cls": b"2",
            "a.PNG": b"3",
            "a.json": b'{"label": 0, "text": "x"}',
            "c.cls": b" 1\n",
            "c.webp": b"4",
            "d.json": b'{"cls": 3}',
            "d.JPEG": b"5",
            "e.ppm": b"6",
            "e.json": b'{"class": 1}',
            "f.tif": b"7",
            "f.cls": b"0",
            "f.json": b"not looked at",
        },
    )
    source = open_source(path)
    assert source.kind == "webdataset"
    assert listed(source) == [
        ("train-000/b.jpg", 2, b"1"),
        ("train-000/a.PNG", 0, b"3"),
        ("train-000/c.webp", 1, b"4"),
        ("train-000/d.JPEG", 3, b"5"),
        ("train-000/e.ppm", 1, b"6"),
        ("train-000/f.tif", 0, b"7"),
    ]
    assert source.class_names == ("0", "1", "2", "3")
    assert source.describe() == "webdataset: 6 images, 4 classes, tars: 1"


def test_a_name_ends_at_the_first_dot_of_its_last_part(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.tar",
        {
            "v1.5/x.jpg": b"1",
            "v1.5/x.cls": b"1",
            "y.mask.png": b"mask",
            "y.jpg": b"2",
            "y.cls": b"0",
            "no_extension": b"",
            "z/.y.jpg": b"hidden",
            "README": b"",
            "w.txt": b"a caption",
        },
    )
    source = open_source(path, "webdataset")
    assert listed(source) == [("s/v1.5/x.jpg", 1, b"1"), ("s/y.jpg", 0, b"2")]
    assert source.ignored.counts == {"other_extension": 2, "other_member": 2, "hidden": 1, "no_image": 1}


def test_shards_of_a_folder_are_taken_by_name(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write(tmp_path / f"{number}.tar", {"a.jpg": b"%d" % number, "a.cls": b"%d" % number})
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "._0.tar").write_text("x")
    source = open_source(tmp_path)
    assert source.kind == "webdataset"
    assert listed(source) == [("0/a.jpg", 0, b"0"), ("1/a.jpg", 1, b"1"), ("2/a.jpg", 2, b"2")]
    assert source.ignored.counts == {"other_member": 1, "hidden": 1}
    assert source.describe().endswith("tars: 3")


def test_the_parts_of_a_sample_may_be_apart_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    members = [("a.cls", b"7"), ("b.jpg", b"b"), ("a.jpg", b"old"), ("b.cls", b"1"), ("a.jpg", b"new"), ("a.cls", b"0")]
    (tmp_path / "s.tar").write_bytes(fake.tar_bytes(members))
    source = open_source(tmp_path / "s.tar")
    assert listed(source) == [("s/a.jpg", 0, b"new"), ("s/b.jpg", 1, b"b")]
    assert source.ignored.counts == {"replaced_member": 2}


def test_labels_are_checked_against_the_class_list(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {"a.jpg": b"1", "a.cls": b"1", "b.jpg": b"2", "b.cls": b"0"})
    source = open_source(path, classes=("cat", "dog"))
    assert [source.class_names[entry.label] for entry in source.entries] == ["dog", "cat"]
    assert "sample 'a' has the label 1; labels go from 0 to 0, the length of the class list" in refusal(
        path, classes=("cat",)
    )
    assert "no image of 1 classes" in refusal(path, classes=("cat", "dog", "eel"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x/a.jpg": b""}, "sample 'x/a' has an image and no label: expected x/a.cls or x/a.json"),
        ({"a.jpg": b"", "a.cls": b"\xff"}, r"'a.cls' holds b'\xff' for a label; expected a number or a name"),
        ({"a.jpg": b"", "a.cls": b"a\nb"}, "'a.cls' holds"),
        ({"a.jpg": b"", "a.cls": b"x" * 300}, "'a.cls' holds"),
        (
            {"a.jpg": b"", "a.cls": b"0", "b.jpg": b"", "b.cls": b"cat"},
            "label 'cat', and samples before it have numbers",
        ),
        ({"a.jpg": b"", "a.cls": b"cat", "b.jpg": b"", "b.cls": b"0"}, "label 0, and samples before it have names"),
        ({"a.jpg": b"", "a.cls": b""}, "'a.cls' holds b''"),
        ({"a.jpg": b"", "a.cls": b"1.0"}, "'a.cls' holds b'1.0'"),
        ({"a.jpg": b"", "a.cls": b"9" * 30}, "'a.cls' holds b'999"),
        ({"a.jpg": b"", "a.cls": b"-1"}, "has the label -1; labels go from 0"),
        ({"a.jpg": b"", "a.cls": b"4000000000"}, "has the label 4000000000"),
        ({"a.jpg": b"", "a.cls": b"1", "a.png": b""}, "sample 'a' has two images, 'a.jpg' and 'a.png'"),
        ({"a.jpg": b"", "a.json": b"{"}, "expected an object with a number or a name as label or cls or class"),
        ({"a.jpg": b"", "a.json": b'{"label": 0, "class": "cat"}'}, "class, the same where it has several"),
        ({"a.jpg": b"", "a.json": b"3"}, "'a.json' holds b'3'"),
        ({"a.jpg": b"", "a.json": b'{"label": true}'}, "'a.json' holds"),
        ({"a.jpg": b"", "a.json": b'{"label": 1.0}'}, "'a.json' holds"),
        ({"a.jpg": b"", "a.json": b'{"label": "1.5"}'}, "'a.json' holds"),
        ({"a.jpg": b"", "a.json": b'{"label": ""}'}, "'a.json' holds"),
        ({"a.jpg": b"", "a.json": b'{"label": 1, "cls": 2}'}, "'a.json' holds"),
        ({"a.jpg": b"", "a.json": b"[" * 100_000}, "'a.json' holds"),
        ({"a.jpg": b"", "a.json": b" " * 2_000_000}, "'a.json' holds"),
        ({"a.txt": b"", "b.cls": b"1"}, "no samples with an image"),
        ({}, "no samples with an image"),
    ],
)
def test_a_bad_sample_is_named_with_its_shard(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    found = refusal(write(tmp_path / "shard-7.tar", members))
    assert message in found and "shard-7.tar" in found and len(found) < 500 + len(str(tmp_path))


def test_names_for_labels_are_classes_sorted_or_those_of_a_list(tmp_path: Path) -> None:
    members = {"a.jpg": b"1", "a.cls": b"Stra\xc3\x9fe\n", "b.jpg": b"2", "b.json": b'{"label": "Auto"}', "c.jpg": b"3"}
    path = write(tmp_path / "s.tar", members | {"c.cls": b"Auto"})
    source = open_source(path)
    assert source.class_names == ("Auto", "Stra\xdfe")
    assert [entry.label for entry in source.entries] == [1, 0, 0]
    given = open_source(path, classes=("Stra\xdfe", "Auto"))
    assert [entry.label for entry in given.entries] == [0, 1, 1]
    assert "1 labels are not in the class list of 2 names ('Auto')" in refusal(path, classes=("Stra\xdfe", "Rad"))
    quoted = write(tmp_path / "q.tar", {"a.jpg": b"1", "a.json": b'{"label": "12"}', "b.jpg": b"2", "b.cls": b"3"})
    assert [entry.label for entry in open_source(quoted).entries] == [12, 3], "a number in quotes is a number"


@pytest.mark.parametrize(
    ("names", "split", "taken"),
    [
        (("train-0", "val-0"), "train", ["train-0"]),
        (("in1k-train-0000", "in1k-train-0001", "in1k-validation-00"), "train", ["in1k-train-0000", "in1k-train-0001"]),
        (("in1k-train-0000", "in1k-validation-00"), "in1k-validation", ["in1k-validation-00"]),
        (("training_0-of-2", "extra-0"), None, ["extra-0", "training_0-of-2"]),
        (("cats-0", "dogs-0"), None, ["cats-0", "dogs-0"]),
        (("contest-0", "trainer-0"), None, ["contest-0", "trainer-0"]),
        (("train-0", "val-0"), "all", ["train-0", "val-0"]),
        (("all-0", "val-0"), "all", ["all-0"]),
        (("train_val-0", "train_val-1"), None, ["train_val-0", "train_val-1"]),
    ],
)
def test_of_several_splits_one_is_taken(
    tmp_path: Path, names: tuple[str, ...], split: str | None, taken: list[str]
) -> None:
    for name in names:
        write(tmp_path / f"{name}.tar", {"a.jpg": b"1", "a.cls": b"0"})
    assert [entry.path.split("/")[0] for entry in open_source(tmp_path, split=split).entries] == taken


def test_several_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("set-train-0", "set-val-0"):
        write(tmp_path / f"{name}.tar", {"a.jpg": b"1", "a.cls": b"0"})
    assert "has the splits 'train', 'val': choose one with --split, or --split all" in refusal(tmp_path)
    assert "has no split 'test'; its tars are 'set-train', 'set-val'" in refusal(tmp_path, split="test")
    with pytest.raises(ConfigError, match="--split chooses among the files of a folder"):
        open_source(tmp_path / "set-val-0.tar", split="val")


def test_an_undecodable_name_is_read(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "s.tar", {os.fsdecode(b"\xff.jpg"): b"1", os.fsdecode(b"\xff.cls"): b"0"}))
    assert listed(source) == [(os.fsdecode(b"s/\xff.jpg"), 0, b"1")]


def test_a_folder_without_tars_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    assert "no .tar in it (ignored: 1 other_member)" in refusal(tmp_path)
