"""The training images of ILSVRC, as one tar of tars and as a folder of tars, against the folders they unpack to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_ilsvrc as fake
import pytest

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools.class_list import read_class_names
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.sources import Source, open_source

CLASSES = ("n01440764", "n01751748", "n02084071", "n15075141")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images, three times."""
    folder = tmp_path_factory.mktemp("train")
    images = fake.train_images(CLASSES, 6)
    (folder / "tars").mkdir()
    for wnid, files in images.items():
        (folder / "tars" / f"{wnid}.tar").write_bytes(fake.tar_bytes(fake.shuffled(files)))
    return {
        "tar": fake.write_train_tar(folder / "ILSVRC2012_img_train.tar", images),
        "tars": folder / "tars",
        "folder": fake.write_train_folder(folder / "folder", images),
    }


def pairs(source: Source) -> list[tuple[str, int]]:
    return [(entry.path, entry.label) for entry in source.entries]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", ["tar", "tars"])
def test_archives_have_the_entries_of_the_folders_they_unpack_to(places: dict[str, Path], place: str) -> None:
    source, folder = open_source(places[place]), open_source(places["folder"])
    assert (source.kind, folder.kind) == ("ilsvrc-train", "folder")
    assert source.class_names == folder.class_names == CLASSES
    assert pairs(source) == pairs(folder)
    assert source.fingerprint == folder.fingerprint
    assert [source.read(entry) for entry in source.entries] == [folder.read(entry) for entry in folder.entries]
    assert source.describe() == "ilsvrc-train: 24 images, 4 classes"
    assert source.entries[0].path == "n01440764/n01440764_1.JPEG"


def content(dataset: Path) -> dict[str, object]:
    """Hashes of binary files and JSON without the kind of source, and the digests that it enters."""

    def without(value: object) -> object:
        if isinstance(value, dict):
            gone = ("kind", "plan", "digest", "manifest_digest")
            return {key: without(item) for key, item in value.items() if key not in gone}
        return value

    return {
        str(path.relative_to(dataset)): without(json.loads(path.read_bytes()))
        if path.suffix == ".json"
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file()
    }


def test_archives_and_folders_are_converted_to_the_same_bytes(
    tmp_path: Path, places: dict[str, Path], make_dataset: Callable[..., Path]
) -> None:
    command = [sys.executable, "-m", "lmdali.tools", "convert", str(places["tar"]), str(tmp_path / "tar"), "-j2"]
    done = subprocess.run([*command, "--size", "16"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "ilsvrc-train: 24 images, 4 classes" in done.stdout
    folder = make_dataset(places["folder"], tmp_path / "folder", size=16)
    tars = make_dataset(places["tars"], tmp_path / "tars", size=16)
    assert content(tmp_path / "tar") == content(folder) == content(tars)
    assert load_manifest(tmp_path / "tar").class_names == CLASSES
    images = fake.train_images(CLASSES, 6)
    rows = read_rows(tmp_path / "tar" / "records.parquet")
    assert len(rows) == 24
    for row in rows:
        wnid, name = row["source"].split("/")
        assert CLASSES[row["label"]] == wnid
        assert row["source_sha256"] == hashlib.sha256(images[wnid][name]).hexdigest()


def test_what_is_no_image_is_counted_and_empty_classes_keep_their_number(tmp_path: Path) -> None:
    third = {"a/3_2.JPEG": b"2", "./3_1.JPEG": b"old", "3.txt": b"", "3_1.JPEG": b"1", "._3_1.JPEG": b""}
    members = {
        "readme.txt": b"hello",
        ".DS_Store": b"x",
        "train/n00000003.tar": fake.tar_bytes(third.items()),
        "train/n00000001.tar": fake.tar_bytes([("n1_1.JPEG", b"x")]),
        "train/n00000002.tar": fake.tar_bytes([]),
    }
    path = tmp_path / "train.tar"
    path.write_bytes(fake.tar_bytes(members.items()))
    source = open_source(path, "ilsvrc-train")
    assert source.class_names == ("n00000001", "n00000002", "n00000003") and source.class_counts == (1, 0, 2)
    assert pairs(source) == [("n00000001/n1_1.JPEG", 0), ("n00000003/3_1.JPEG", 2), ("n00000003/a/3_2.JPEG", 2)]
    assert [source.read(entry) for entry in source.entries] == [b"x", b"1", b"2"]
    assert source.ignored.counts == {"other_member": 1, "hidden": 2, "other_extension": 1, "replaced_member": 1}


def test_labels_follow_a_class_list(places: dict[str, Path]) -> None:
    assert all(read_class_names(place) == CLASSES for place in places.values())
    backwards = CLASSES[::-1]
    source = open_source(places["tar"], classes=backwards)
    assert source.class_names == backwards and source.entries[0].path.startswith("n15075141/")
    assert [backwards[entry.label] for entry in source.entries] == [entry.path[:9] for entry in source.entries]
    assert "2 class archives are not in the class list of 2 names" in refusal(places["tar"], classes=CLASSES[:2])
    assert "no image of 1 classes" in refusal(places["tar"], classes=[*CLASSES, "n99999999"])


def test_archives_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    inner = fake.tar_bytes([("n1_1.JPEG", b"x")])
    path = tmp_path / "train.tar"
    for members, message in (
        (
            [("n00000001.tar", inner), ("n00000002.tar.gz", b"x")],
            "'n00000002.tar.gz' is an archive, but not of",
        ),
        ([("n00000001.tar", inner), ("dogs.tar", inner)], "'dogs.tar' is an archive, but not of a class"),
        ([("n00000001.tar", inner), ("b/n00000001.tar", inner)], "class n00000001 is there twice"),
        ([("n00000001.tar", inner), ("n00000002.tar", inner[:700])], "in 'n00000002.tar': truncated at byte 700"),
        ([("n00000001.tar", inner), ("n00000002.tar", b"\x1f\x8b" + inner)], "in 'n00000002.tar': is compressed"),
        ([("n00000001.tar", inner), ("n00000002.tar", b"<html>")], "in 'n00000002.tar': no sound tar header"),
        ([("n00000001.tar", fake.tar_bytes([("a.txt", b"")]))], "1 archives of classes, but no image"),
    ):
        path.write_bytes(fake.tar_bytes(members))
        found = refusal(path)
        assert message in found, found
    path.write_bytes(fake.tar_bytes([("a.jpg", b"x")]))
    assert "no archives of classes" in refusal(path, format="ilsvrc-train")


def test_other_files_beside_the_archives_are_counted(tmp_path: Path) -> None:
    for name in ("n00000001.tar", "ILSVRC2012_devkit_t12.tar.gz", "readme.txt", "._n00000001.tar"):
        (tmp_path / name).write_bytes(fake.tar_bytes([("n1_1.JPEG", b"x")]))
    source = open_source(tmp_path)
    assert source.kind == "ilsvrc-train" and source.ignored.counts == {"other_member": 2, "hidden": 1}
    (tmp_path / "n00000002.tgz").write_bytes(b"")
    assert "'n00000002.tgz' is an archive, but not of a class" in refusal(tmp_path)


def test_an_archive_that_changes_ends_the_run_and_rejects_nothing(tmp_path: Path, places: dict[str, Path]) -> None:
    path = tmp_path / "train.tar"
    shutil.copy(places["tar"], path)
    source = open_source(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(InputError, match="changed after it was scanned") as caught:
        convert(source, tmp_path / "out", ConvertConfig(size=16), workers=1, quiet=True)
    assert not isinstance(caught.value, SourceRejected)
    assert not (tmp_path / "out" / "manifest.json").exists() and not list((tmp_path / "out" / "shards").iterdir())


def test_a_replaced_class_archive_is_counted(tmp_path: Path) -> None:
    old, new = (fake.tar_bytes([(f"n1_{n}.JPEG", b"x")]) for n in (1, 2))
    (tmp_path / "train.tar").write_bytes(fake.tar_bytes([("n00000001.tar", old), ("./n00000001.tar", new)]))
    source = open_source(tmp_path / "train.tar")
    assert pairs(source) == [("n00000001/n1_2.JPEG", 0)] and source.ignored.counts == {"replaced_member": 1}


@pytest.mark.parametrize("place", ["tar", "tars"])
def test_a_patch_replaces_images_of_its_names(tmp_path: Path, places: dict[str, Path], place: str) -> None:
    patch = tmp_path / "patch_images.tar"
    patch.write_bytes(
        fake.tar_bytes([("p/train/n02084071_8.JPEG", b"better"), ("p/val/ILSVRC2010_val_00000001.JPEG", b"other")])
    )
    source = open_source(places[place], patch=patch)
    patched = [entry.path for entry in source.entries if source.read(entry) == b"better"]
    assert patched == ["n02084071/n02084071_8.JPEG"]
    assert source.ignored.counts == {"patched_image": 1, "other_member": 1}
    assert source.describe() == "ilsvrc-train: 24 images, 4 classes, images from patch_images.tar: 1"
    patch.write_bytes(fake.tar_bytes([("n09999999_1.JPEG", b"nowhere")]))
    assert "1 of its images are not in" in refusal(places[place], patch=patch)
    with pytest.raises(ConfigError, match="patch belongs to sources of the kind ilsvrc-train or ilsvrc-val"):
        open_source(places["folder"], patch=patch)
