"""Validation and test images of ILSVRC: which label an image gets, above all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import fake_ilsvrc as fake
import numpy as np
import pytest

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools.class_table import read_class_table
from lmdali.tools.sources import Source, open_source

VAL = "ILSVRC2012_img_val.tar"
KIT = "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture(autouse=True)
def tables_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a class table takes a process, and tests read the same one many times."""
    monkeypatch.setattr("lmdali.tools.devkit.read_class_table", _cached_table)


_cached_table = cache(read_class_table)


def write_set(folder: Path, by_id: list[str], ids: list[int], meta: bytes | None = None) -> Path:
    """A kit and a tar of as many images as there are ids; gives the tar."""
    fake.write_devkit(folder / KIT, meta or fake.meta_mat(by_id, internal=5), fake.ground_truth(ids))
    images = fake.numbered_images(len(ids))
    (folder / VAL).write_bytes(fake.tar_bytes(fake.shuffled(images)))
    return folder / VAL


def labels(source: Source) -> list[int]:
    return [entry.label for entry in source.entries]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_six_images_get_the_labels_that_everybody_knows(tmp_path: Path) -> None:
    source = open_source(write_set(tmp_path, fake.wnids_by_id(), list(fake.GOLDEN_TRUTH)))
    assert source.kind == "ilsvrc-val"
    assert tuple(labels(source)) == fake.GOLDEN_LABELS == (65, 970, 230, 809, 516, 57)
    assert source.class_names[65] == "n01751748"
    assert source.entries[0].path == "ILSVRC2012_val_00000001.JPEG"
    assert source.describe() == f"ilsvrc-val: 6 images, 1,000 classes, labels from {KIT}"


@pytest.mark.parametrize("seed", [1, 2])
def test_labels_undo_the_permutation_of_the_kit_for_every_class(tmp_path: Path, seed: int) -> None:
    by_id = fake.wnids_by_id(seed=seed)
    ids = (np.random.default_rng(seed).permutation(1000) + 1).tolist()
    source = open_source(write_set(tmp_path, by_id, ids))
    assert sorted(labels(source)) == list(range(1000))
    for number, (entry, class_id) in enumerate(zip(source.entries, ids, strict=True), 1):
        assert entry.path == f"ILSVRC2012_val_{number:08d}.JPEG"
        assert source.class_names[entry.label] == by_id[class_id - 1]
        assert source.read(entry) == fake.jpeg(10_000 + number)


def test_the_place_in_the_archive_folders_and_links_do_not_matter(tmp_path: Path) -> None:
    path = write_set(tmp_path, fake.wnids_by_id(6), [3, 1, 2, 6, 5, 4, 1])
    whole = open_source(path)
    images = fake.numbered_images(7)
    for seed, prefix in ((8, "val/"), (9, "./"), (10, "ILSVRC2012_img_val/")):
        path.write_bytes(fake.tar_bytes((prefix + name, data) for name, data in fake.shuffled(images, seed)))
        again = open_source(path)
        assert again.fingerprint == whole.fingerprint
        assert [again.read(entry) for entry in again.entries] == list(images.values())
    folder = tmp_path / "val"
    folder.mkdir()
    for name, data in images.items():
        (folder / name).write_bytes(data)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    unpacked = open_source(folder)
    assert unpacked.fingerprint == whole.fingerprint and unpacked.kind == "ilsvrc-val"
    assert unpacked.ignored.counts == {"hidden": 1, "other_member": 1}
    assert unpacked.read(unpacked.entries[4]) == images["ILSVRC2012_val_00000005.JPEG"]


def test_labels_follow_the_class_list_of_the_training_set(tmp_path: Path) -> None:
    by_id, ids = fake.wnids_by_id(4), [2, 1, 4, 3]
    path = write_set(tmp_path, by_id, ids)
    classes = fake.wnids(4)[::-1]
    source = open_source(path, classes=classes)
    assert source.class_names == tuple(classes)
    assert [classes[label] for label in labels(source)] == [by_id[number - 1] for number in ids]
    assert "1 classes of the development kit are not in the class list of 3 names" in refusal(path, classes=classes[1:])
    message = refusal(path, classes=[*classes, "n99999999"])
    assert "1 names of the class list are no classes of the development kit" in message and "n99999999" in message


def test_missing_and_extra_numbers_are_named(tmp_path: Path) -> None:
    path = write_set(tmp_path, fake.wnids_by_id(3), [1, 2, 3, 1, 2])
    images = fake.numbered_images(5)
    cases = [
        ({name: data for name, data in images.items() if "3." not in name}, "1 of them are missing, first number 3"),
        (fake.numbered_images(7), "2 have no label, first number 6"),
        ({**images, "ILSVRC2012_val_00000000.JPEG": b"x"}, "1 have no label, first number 0"),
        ({**images, "ILSVRC2012_test_00000001.JPEG": b"x"}, "has images of"),
        ({**images, "ILSVRC2010_val_00000001.JPEG": b"x"}, "has images of"),
        ({**images, "other/ILSVRC2012_val_00000002.JPEG": b"x"}, "image 2 is there twice"),
        ({**images, "ILSVRC2012_val_00000002.jpg": b"x"}, "image 2 is there twice"),
    ]
    for members, message in cases:
        path.write_bytes(fake.tar_bytes(members.items()))
        assert message in refusal(path)


def test_the_kit_may_lie_elsewhere_and_has_to_be_there(tmp_path: Path) -> None:
    path = write_set(tmp_path, fake.wnids_by_id(3), [1, 2, 3])
    (tmp_path / "kits").mkdir()
    (tmp_path / KIT).rename(tmp_path / "kits" / "renamed.tar.gz")
    assert "--devkit" in refusal(path)
    source = open_source(path, devkit=tmp_path / "kits" / "renamed.tar.gz")
    assert source.scan.detail == "labels from renamed.tar.gz"
    (tmp_path / "truth.txt").write_bytes(fake.ground_truth([3, 3, 3]))
    source = open_source(path, devkit=tmp_path / "kits" / "renamed.tar.gz", ground_truth=str(tmp_path / "truth.txt"))
    assert {source.class_names[label] for label in labels(source)} == {fake.wnids_by_id(3)[2]}
    (tmp_path / "truth.txt").write_bytes(b"1\n2\nx\n")
    message = refusal(path, devkit=tmp_path / "kits" / "renamed.tar.gz", ground_truth=tmp_path / "truth.txt")
    assert "truth.txt', line 3: 'x'" in message
    with pytest.raises(ConfigError, match="devkit belongs to sources of the kind ilsvrc-val; this is taken for 'list'"):
        open_source(tmp_path / "truth.txt", devkit=tmp_path)


def test_test_images_take_their_labels_from_a_file_of_their_own(tmp_path: Path) -> None:
    by_id = fake.wnids_by_id(4)
    meta = fake.meta_mat(by_id, "ILSVRC2010", internal=3)
    fake.write_devkit(tmp_path / "ILSVRC2010_devkit-1.0.tar.gz", meta, fake.ground_truth([1, 1]), "ILSVRC2010")
    images = fake.numbered_images(3, "ILSVRC2010_test")
    path = tmp_path / "ILSVRC2010_images_test.tar"
    path.write_bytes(fake.tar_bytes((f"test/{name}", data) for name, data in fake.shuffled(images)))
    assert "ILSVRC2010_test_ground_truth.txt" in refusal(path)
    (tmp_path / "ILSVRC2010_test_ground_truth.txt").write_bytes(fake.ground_truth([4, 2, 3]))
    source = open_source(path)
    assert [source.class_names[label] for label in labels(source)] == [by_id[3], by_id[1], by_id[2]]
    assert source.scan.detail == "labels from ILSVRC2010_test_ground_truth.txt"


def test_a_patch_replaces_images_of_its_names(tmp_path: Path) -> None:
    by_id = fake.wnids_by_id(4)
    meta = fake.meta_mat(by_id, "ILSVRC2010", internal=3)
    fake.write_devkit(tmp_path / "ILSVRC2010_devkit-1.0.tar.gz", meta, fake.ground_truth([4, 3, 2]), "ILSVRC2010")
    images = fake.numbered_images(3, "ILSVRC2010_val")
    path = tmp_path / "ILSVRC2010_images_val.tar"
    path.write_bytes(fake.tar_bytes(fake.shuffled(images)))
    patch = tmp_path / "patch_images.tar"
    members = {
        "patch_images/val/ILSVRC2010_val_00000002.JPEG": fake.jpeg(1),
        "patch_images/test/ILSVRC2010_test_00000001.JPEG": fake.jpeg(2),
        "patch_images/train/n01751748_9.JPEG": fake.jpeg(3),
    }
    patch.write_bytes(fake.tar_bytes(members.items()))
    before, source = open_source(path), open_source(path, patch=patch)
    assert labels(source) == labels(before) and source.class_names == before.class_names
    assert source.fingerprint == open_source(path, patch=patch).fingerprint != before.fingerprint
    assert [source.read(entry) for entry in source.entries][1] == fake.jpeg(1)
    assert source.read(source.entries[0]) == images["ILSVRC2010_val_00000001.JPEG"]
    assert source.ignored.counts == {"other_member": 2, "patched_image": 1}
    assert source.scan.detail == "labels from ILSVRC2010_devkit-1.0.tar.gz, images from patch_images.tar: 1"
    members["patch_images/val/ILSVRC2010_val_00000004.JPEG"] = fake.jpeg(4)
    patch.write_bytes(fake.tar_bytes(members.items()))
    assert "1 of its images are not in" in refusal(path, patch=patch)
    members["again/ILSVRC2010_val_00000004.JPEG"] = fake.jpeg(4)
    patch.write_bytes(fake.tar_bytes(members.items()))
    assert "which is it?" in refusal(path, patch=patch)
    (tmp_path / "val").mkdir()
    (tmp_path / "val/ILSVRC2010_val_00000001.JPEG").write_bytes(b"x")
    with pytest.raises(ConfigError, match="unpack it over the folder"):
        open_source(tmp_path / "val", patch=patch)


def test_train_and_val_are_converted_with_one_numbering(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    by_id, ids = fake.wnids_by_id(6), [5, 5, 1, 2, 6, 3, 4, 1, 2, 3]
    val = write_set(tmp_path, by_id, ids)
    train = make_dataset(
        fake.write_train_tar(tmp_path / "ILSVRC2012_img_train.tar", fake.train_images(fake.wnids(6), 2)),
        tmp_path / "train",
        size=16,
    )
    command = [
        sys.executable,
        "-m",
        "lmdali.tools",
        "convert",
        str(val),
        str(tmp_path / "val"),
        "--classes",
        str(train),
    ]
    done = subprocess.run(
        [*command, "--size", "16", "-j1", "--json", "--devkit", str(tmp_path / KIT)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == "ilsvrc-val"
    manifest = load_manifest(tmp_path / "val")
    assert manifest.class_names == load_manifest(train).class_names == tuple(fake.wnids(6))
    rows = {row["source"]: row for row in read_rows(tmp_path / "val" / "records.parquet")}
    assert len(rows) == 10
    for number, class_id in enumerate(ids, 1):
        row = rows[f"ILSVRC2012_val_{number:08d}.JPEG"]
        assert manifest.class_names[row["label"]] == by_id[class_id - 1]
        assert row["source_sha256"] == hashlib.sha256(fake.jpeg(10_000 + number)).hexdigest()
