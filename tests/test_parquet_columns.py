from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parquet_sources import hub_table, write

from lmdali.pipeline.errors import InputError
from lmdali.tools.parquet_columns import scan_table


def test_labels_paths_names_and_row_groups_are_found(tmp_path: Path) -> None:
    paths = ["a.JPEG", None, "c.JPEG", "", "e\u00e9.JPEG"]
    file = write(
        tmp_path / "t.parquet", hub_table([b"x"] * 5, [0, 2, 1, 1, 0], paths, ("p", "q", "r")), row_group_size=2
    )
    scan = scan_table(str(file))
    assert scan.image_column == "image.bytes"
    assert scan.groups == (2, 2, 1)
    assert scan.labels == array("q", [0, 2, 1, 1, 0])
    assert scan.paths == ["a.JPEG", None, "c.JPEG", None, "e\u00e9.JPEG"]
    assert scan.class_names == ("p", "q", "r")


@pytest.mark.parametrize("image", ["image", "jpg", "bytes"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("label", [pa.int8(), pa.uint64(), pa.dictionary(pa.int32(), pa.int64())])
def test_plain_columns_of_many_types(tmp_path: Path, image: str, kind: Any, label: Any) -> None:
    labels = pa.array([3, 1, 3], pa.int64())
    labels = labels.dictionary_encode() if pa.types.is_dictionary(label) else labels.cast(label)
    file = write(
        tmp_path / "t.parquet", pa.table({"id": [1, 2, 3], image: pa.array([b"x"] * 3, kind), "label": labels})
    )
    scan = scan_table(str(file))
    assert (scan.image_column, list(scan.labels), scan.paths, scan.class_names) == (image, [3, 1, 3], [], None)


def test_columns_may_be_named(tmp_path: Path) -> None:
    table = pa.table({"photo": [b"x"], "image": [b"y"], "fine": [7], "label": [1]})
    scan = scan_table(str(write(tmp_path / "t.parquet", table)), "photo", "fine")
    assert (scan.image_column, list(scan.labels)) == ("photo", [7])


def refusal(path: Path, table: Any, **columns: Any) -> str:
    with pytest.raises(InputError) as caught:
        scan_table(str(write(path / "t.parquet", table, row_group_size=2)), **columns)
    assert repr(str(path / "t.parquet")) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_other_schemas_are_refused_with_what_there_is(tmp_path: Path) -> None:
    assert (
        "no image column" in (text := refusal(tmp_path, pa.table({"text": ["a"], "label": [1]}))) and "'text'" in text
    )
    assert "no label column" in refusal(tmp_path, pa.table({"image": [b"a"], "id": [1]}))
    assert "no column 'x'" in refusal(tmp_path, hub_table([b""], [0]), image="x")
    assert "is double, expected integers or names" in refusal(tmp_path, pa.table({"image": [b"a"], "label": [0.5]}))
    empty = pa.table({"image": [b"a"] * 2, "label": ["cat", " "]})
    assert "row 1: the label is an empty text: leave the row out" in refusal(tmp_path, empty)
    assert "row 1: the label is null" in refusal(tmp_path, pa.table({"image": [b"a"] * 2, "label": ["cat", None]}))
    assert "is string, expected binary or struct" in refusal(tmp_path, pa.table({"image": ["a.jpg"], "label": [1]}))
    assert "expected binary or struct" in refusal(tmp_path, pa.table({"image": [{"path": "a.jpg"}], "label": [1]}))


def test_rows_without_a_label_are_refused_by_number(tmp_path: Path) -> None:
    assert "row 3: label -1: no labels: the test split cannot be converted" in refusal(
        tmp_path, hub_table([b""] * 4, [0, 1, 2, -1])
    )
    assert "row 0: label -7: labels count classes from 0" in refusal(tmp_path, hub_table([b""] * 2, [-7, 1]))
    assert "row 2: the label is null" in refusal(tmp_path, hub_table([b""] * 3, [0, 1, None]))
    assert "row group 0: its labels cannot be read" in refusal(
        tmp_path, pa.table({"image": [b""], "label": pa.array([2**63], pa.uint64())})
    )


def test_class_names_that_are_no_list_of_names_are_refused(tmp_path: Path) -> None:
    table = hub_table([b""], [0])
    odd = table.replace_schema_metadata({"huggingface": '{"info": {"features": {"label": {"names": ["a", 3]}}}}'})
    assert "no list of names" in refusal(tmp_path, odd)
    for text in ("{", "[]", '{"info": {"features": {"label": []}}}', '{"info": {"features": {"other": {}}}}'):
        kept = table.replace_schema_metadata({"huggingface": text})
        assert scan_table(str(write(tmp_path / "t.parquet", kept))).class_names is None


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PARE" + bytes(40) + b"PARE", b"\x89PNG" * 9])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.parquet': cannot be read as Parquet \(.+\)"):
        scan_table(str(tmp_path / "t.parquet"))


def test_a_file_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "t.parquet", hub_table([bytes(500)] * 20, [0] * 20)).read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "t.parquet").write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            scan_table(str(tmp_path / "t.parquet"))


@given(st.integers(0, 2**32))
def test_damaged_labels_are_an_error_of_ours_or_labels(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Damage to the column of labels only: to a footer it may crash the reader, which is why a child reads it."""
    file = tmp_path_factory.mktemp("damage") / "t.parquet"
    write(file, hub_table([b""] * 30, list(range(30))), compression="none", use_dictionary=False, row_group_size=10)
    content, dice = bytearray(file.read_bytes()), random.Random(seed)
    label = content.find(bytes(range(1)) + bytes(7) + b"\x01" + bytes(7))
    content[label + dice.randrange(80)] ^= 1 << dice.randrange(8)
    file.write_bytes(content)
    try:
        assert len(scan_table(str(file)).labels) == 30
    except InputError as error:
        assert str(file) in str(error)
