"""Development kits: the class table, the ground truth, and everything that may be wrong with them."""

from __future__ import annotations

import gzip
from pathlib import Path

import fake_ilsvrc as fake
import pytest

from lmdali.pipeline.errors import InputError
from lmdali.tools.class_table import ClassRow
from lmdali.tools.devkit import find_devkit, parse_ground_truth, read_devkit


@pytest.fixture(scope="module")
def golden_meta() -> bytes:
    return fake.meta_mat(fake.wnids_by_id())


@pytest.fixture(scope="module")
def small_meta() -> bytes:
    return fake.meta_mat(fake.wnids_by_id(5), internal=3)


def refusal(path: Path, challenge: str = "ILSVRC2012") -> str:
    with pytest.raises(InputError) as caught:
        read_devkit(path, challenge)
    message = str(caught.value)
    assert "\n" not in message and repr(str(path)) in message
    return message


@pytest.mark.parametrize("name", ["ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar", "ILSVRC2012_devkit_t12"])
def test_a_kit_is_read_as_it_comes_and_unpacked(tmp_path: Path, golden_meta: bytes, name: str) -> None:
    truth = fake.ground_truth(fake.GOLDEN_TRUTH)
    path = fake.write_devkit(tmp_path / name, golden_meta, truth)
    assert find_devkit(tmp_path / "ILSVRC2012_img_val.tar", "ILSVRC2012") == path
    kit = read_devkit(path, "ILSVRC2012")
    assert kit.wnids == tuple(fake.wnids_by_id()) and kit.class_names == tuple(fake.wnids())
    assert kit.wnids != kit.class_names
    assert kit.validation == truth
    assert kit.wnids[489] == kit.class_names[65] == "n01751748"


def test_the_kit_of_2010_has_its_own_names(tmp_path: Path) -> None:
    meta = fake.meta_mat(fake.wnids_by_id(7), "ILSVRC2010", internal=4)
    path = fake.write_devkit(tmp_path / "ILSVRC2010_devkit-1.0.tar.gz", meta, b"1\n", "ILSVRC2010")
    assert find_devkit(tmp_path / "ILSVRC2010_images_val.tar", "ILSVRC2010") == path
    assert read_devkit(path, "ILSVRC2010").wnids == tuple(fake.wnids_by_id(7))
    assert "no data/ILSVRC2012_validation_ground_truth.txt" in refusal(path)


def test_a_kit_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ILSVRC2012_devkit_t12\.tar\.gz.*--devkit"):
        find_devkit(tmp_path / "val.tar", "ILSVRC2012")
    with pytest.raises(InputError, match="ILSVRC2099"):
        find_devkit(tmp_path / "val.tar", "ILSVRC2099")
    assert "cannot be read" in refusal(tmp_path / "nowhere.tar.gz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"meta\.mat.*cannot be read"):
        read_devkit(tmp_path / "folder", "ILSVRC2012")


def test_a_damaged_kit_is_refused(tmp_path: Path, small_meta: bytes) -> None:
    path = fake.write_devkit(tmp_path / "kit.tar.gz", small_meta, b"1\n")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "does not decompress" in refusal(path)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:3000]))
    assert "truncated at byte 3000" in refusal(path)
    path.write_bytes(b"<html>Please log in</html>")
    assert "no sound tar header" in refusal(path)
    path.write_bytes(gzip.compress(b"\x00" * 300_000_000, 1))
    assert "decompresses to more than" in refusal(path)


@pytest.mark.parametrize(
    ("row", "found", "message"),
    [
        (1, (1.0, "n00000002", 0), "ILSVRC2012_ID 1 belongs to both n00000001 and n00000002"),
        (2, (9, "n00000003", 0), "of its 4 classes do not run from 1 to 4"),
        (0, (0, "n00000001", 0), "of its 4 classes do not run from 1 to 4"),
        (0, (1.5, "n00000001", 0), "row 0 of synsets (n00000001) has no integer ILSVRC2012_ID"),
        (0, ("one", "n00000001", 0), "no integer ILSVRC2012_ID"),
        (0, (True, "n00000001", 0), "no integer ILSVRC2012_ID"),
        (0, (float("inf"), "n00000001", 0), "no integer ILSVRC2012_ID"),
        (0, (1, "n00000001", float("nan")), "no integer ILSVRC2012_ID or num_children"),
        (0, (1, "n00000001", [0]), "no integer ILSVRC2012_ID or num_children"),
        (2, (3, "tench", 0), "row 2 of synsets has the WNID 'tench'"),
        (2, (3, 3.0, 0), "row 2 of synsets has the WNID '3.0'"),
        (2, (3, "n00000001", 0), "a WNID belongs to two values"),
        (2, (3, "n00000003", 1), "of its 3 classes do not run from 1 to 3"),
    ],
)
def test_a_wrong_class_table_is_refused_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int, found: tuple[object, ...], message: str
) -> None:
    rows = [ClassRow(number, f"n{number:08d}", 0) for number in (1, 2, 3, 4)] + [ClassRow(5, "n00000005", 4)]
    path = fake.write_devkit(tmp_path / "kit.tar", b"", b"1\n")
    monkeypatch.setattr("lmdali.tools.devkit.read_class_table", lambda *_: rows)
    assert read_devkit(path, "ILSVRC2012").wnids == ("n00000001", "n00000002", "n00000003", "n00000004")
    rows[row] = ClassRow(*found)
    refused = refusal(path)
    assert message in refused and "data/meta.mat" in refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 1: '' is no class id"),
        (b"1\n2\n\n3\n", "line 3: '' is no class id"),
        (b"1\n2.0\n", "line 2: '2.0'"),
        (b"1\n0\n", "line 2: '0' is no class id; expected 1 to 5"),
        (b"6\n", "line 1: '6'"),
        (b"-1\n", "line 1: '-1'"),
        (b"1 2\n", "line 1: '1 2'"),
        (b"\xff\n", "line 1: '\\udcff'"),
        (b"9" * 5000, "line 1: '999"),
    ],
)
def test_a_bad_line_of_ground_truth_is_named(text: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_ground_truth(text, "truth.txt", 5)
    assert f"truth.txt, {message}" in str(caught.value) and len(str(caught.value)) < 200


def test_ground_truth_may_end_as_it_likes() -> None:
    for text in (b"5\n1\n", b"5\n1", b"5\r\n1\r\n\r\n", b" 5 \n1\t\n\n"):
        assert parse_ground_truth(text, "truth.txt", 5) == [5, 1]
