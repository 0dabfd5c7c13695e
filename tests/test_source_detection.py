"""What a path is taken for, and what is said of one that is nothing."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import fake_ilsvrc as fake
import pytest

from lmdali.pipeline.errors import InputError
from lmdali.tools.source_detection import SOURCE_FORMATS, detect_format

INNER = fake.tar_bytes([("n00000001_1.JPEG", b"x")])


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        detect_format(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        (["n00000001.tar", "n00000002.tar"], "ilsvrc-train"),
        (["train/n00000001.tar"], "ilsvrc-train"),
        ([".DS_Store", "n00000001.tar"], "ilsvrc-train"),
        (["ILSVRC2012_val_00000123.JPEG"], "ilsvrc-val"),
        (["val/ILSVRC2010_val_00000123.JPEG"], "ilsvrc-val"),
        (["ILSVRC2010_test_00000123.JPEG"], "ilsvrc-val"),
        (["0001.jpg", "0001.cls"], "webdataset"),
        (["n00000001_1.JPEG"], "webdataset"),
        ([], "webdataset"),
    ],
)
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_are_known_by_their_first_file_whatever_they_are_called(
    tmp_path: Path, members: list[str], kind: str, format: int
) -> None:
    path = tmp_path / "download (1)"
    path.write_bytes(fake.tar_bytes(((name, INNER) for name in members), format))
    assert detect_format(path) == kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["n00000001.tar", "n00000002.tar", "readme"], "ilsvrc-train"),
        (["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"], "ilsvrc-val"),
        (["a.tar", "b.tar", "index.json"], "webdataset"),
        (["cat/1.jpg", "dog/1.jpg"], "folder"),
        (["cat/1.jpg", "._x.tar"], "folder"),
        (["1.jpg"], "folder"),
        (["train-0.parquet", "readme"], "parquet"),
        (["data/train-0.parquet", "readme"], "parquet"),
        (["data.mdb", "lock.mdb"], "caffe-lmdb"),
        ([], "folder"),
    ],
)
def test_folders_are_known_by_what_is_in_them(tmp_path: Path, names: list[str], kind: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert detect_format(tmp_path) == kind


def test_folders_that_may_be_two_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "a.tar").write_bytes(b"")
    assert "holds folders ('cat') and archives ('a.tar')" in refusal(tmp_path)
    assert "--format folder or webdataset" in refusal(tmp_path)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1")
    assert "holds folders ('cat') and Parquet files" in refusal(tmp_path)
    (tmp_path / "labels.parquet").unlink()
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"")
    message = refusal(tmp_path)
    assert "holds ILSVRC2012_img_train.tar: convert each of them on its own" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(INNER), "is compressed (gzip).*run gunzip"),
        (b"PK\x03\x04\x14\x00", "a binary file, a zip archive: unpack it and give its folder; expected one of"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07\x01", "a RAR archive"),
        (b"\xff\xd8\xff\xe0", "a single JPEG image"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"abc\x00def", "a binary file of unknown kind"),
    ],
)
def test_other_files_are_refused_by_what_they_look_like(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "source"
    path.write_bytes(content)
    found = refusal(path)
    assert all(part in found for part in message.split(".*"))
    if "compressed" not in message:
        assert all(kind in found for kind in SOURCE_FORMATS[1:])


def test_text_is_a_list_and_a_pipe_is_nothing(tmp_path: Path) -> None:
    for content in (b"", b"a.jpg 0\n", b"\xef\xbb\xbfa.jpg 0\n" * 100):
        (tmp_path / "list.txt").write_bytes(content)
        assert detect_format(tmp_path / "list.txt") == "list"
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a regular file" in refusal(tmp_path / "pipe")


def test_a_damaged_tar_is_a_damaged_tar(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    path.write_bytes(fake.tar_bytes([("n00000001.tar", INNER)])[:4000])
    assert "truncated at byte 4000" in refusal(path)
