from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.table_reader import (
    ColumnReader,
    count_values,
    has_column,
    read_codes,
    read_integers,
    read_rows,
    take_rows,
)
from lmdali.pipeline.tables import RecordRow, RejectRow, concatenate, printable, read_staged, staged_bytes, write_rows

RECORD = RecordRow(
    position=0,
    shard="00000",
    row=0,
    key="00000000_cat/ö.jpg",
    label=2,
    source="cat/ö.jpg",
    source_bytes=5_000_000_000,
    source_sha256="ab" * 32,
    source_width=500,
    source_height=375,
    oddities="gray,cmyk",
    stored_bytes=21_000,
    crc32c=0xE3069283,
    phash=-(2**63),
)
REJECT = RejectRow(
    position=4, label=1, source="x.jpg", reason="truncated", detail="cut", source_bytes=-1, source_sha256=""
)


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [RECORD, replace(RECORD, position=1, row=1, crc32c=2**32 - 1)]
    write_rows(tmp_path / "t", RecordRow, list(rows))
    assert read_rows(tmp_path / "t") == [{f.name: getattr(row, f.name) for f in fields(RecordRow)} for row in rows]
    assert read_rows(tmp_path / "t", ["label"]) == [{"label": 2}] * 2


def test_values_are_counted_in_order_of_first_appearance(tmp_path: Path) -> None:
    write_rows(tmp_path / "t", RecordRow, [replace(RECORD, label=label) for label in (7, 2, 7, 0, 2, 7)])
    write_rows(tmp_path / "none", RejectRow, [])
    assert list(count_values(tmp_path / "t", "label").items()) == [(7, 3), (2, 2), (0, 1)]
    assert count_values(tmp_path / "none", "reason") == {}
    with pytest.raises(IntegrityError, match="cannot be read as Parquet"):
        count_values(tmp_path / "missing", "label")


def test_columns_come_as_arrays_and_equal_texts_get_equal_numbers(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", RecordRow, [replace(RECORD, source=text, phash=n) for n, text in enumerate("xyx", -1)])
    write_rows(tmp_path / "b", RecordRow, [replace(RECORD, source=text) for text in "zy"])
    write_rows(tmp_path / "none", RecordRow, [])
    known: dict[str, int] = {}
    assert read_codes(tmp_path / "a", "source", known).tolist() == [0, 1, 0]
    assert read_codes(tmp_path / "b", "source", known).tolist() == [2, 1]
    assert read_codes(tmp_path / "none", "source", known).tolist() == []
    assert read_integers(tmp_path / "a", "phash").tolist() == [-1, 0, 1]
    assert has_column(tmp_path / "a", "phash") and not has_column(tmp_path / "a", "index")
    with pytest.raises(IntegrityError, match="has no column 'index'"):
        read_integers(tmp_path / "a", "index")
    with pytest.raises(IntegrityError, match="cannot be read as Parquet"):
        has_column(tmp_path / "missing", "phash")


def test_parts_are_joined_in_order_with_a_running_number(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", RecordRow, [RECORD, replace(RECORD, position=1)])
    write_rows(tmp_path / "b", RecordRow, [])
    write_rows(tmp_path / "c", RecordRow, [replace(RECORD, position=7)])
    concatenate([tmp_path / name for name in "abc"], tmp_path / "t", RecordRow, index=True)
    assert [(row["index"], row["position"]) for row in read_rows(tmp_path / "t")] == [(0, 0), (1, 1), (2, 7)]
    assert pq.read_schema(tmp_path / "t").names == ["index", *(f.name for f in fields(RecordRow))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "t"]


def test_what_is_staged_becomes_the_table_that_parquet_would(tmp_path: Path) -> None:
    rows = [[RECORD, replace(RECORD, position=1)], [], [replace(RECORD, position=7)]]
    for number, some in enumerate(rows):
        (tmp_path / f"stream{number}").write_bytes(staged_bytes(RecordRow, some))
        write_rows(tmp_path / f"parquet{number}", RecordRow, some)  # what earlier versions staged
        for kind in ("stream", "parquet"):
            assert read_staged(tmp_path / f"{kind}{number}").to_pylist() == [asdict(row) for row in some]
    for kind in ("stream", "parquet"):
        concatenate([tmp_path / f"{kind}{number}" for number in range(3)], tmp_path / kind, RecordRow, index=True)
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "parquet").read_bytes()
    for damaged in (b"", b"PAR1", (tmp_path / "stream0").read_bytes()[:-200]):
        (tmp_path / "stream0").write_bytes(damaged)
        with pytest.raises(IntegrityError, match="stream0: cannot be read as a table"):
            read_staged(tmp_path / "stream0")
    with pytest.raises(IntegrityError, match="missing: cannot be read"):
        read_staged(tmp_path / "missing")


def test_no_rejects_still_make_a_table_with_all_columns(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", RejectRow, [])
    concatenate([tmp_path / "a"], tmp_path / "t", RejectRow, index=False)
    assert read_rows(tmp_path / "t") == []
    assert pq.read_schema(tmp_path / "t").names == [f.name for f in fields(RejectRow)]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, RejectRow, [REJECT] * 100)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_or_damaged_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="nowhere: cannot be read as Parquet"):
        read_rows(tmp_path / "nowhere")
    write_rows(tmp_path / "t", RejectRow, [REJECT])
    whole = (tmp_path / "t").read_bytes()
    for damaged in (b"", b"PAR1", whole[:-9], whole[: len(whole) // 2]):
        (tmp_path / "t").write_bytes(damaged)
        with pytest.raises(IntegrityError, match="cannot be read as Parquet"):
            read_rows(tmp_path / "t")


def test_a_table_in_a_folder_whose_name_is_not_utf8_is_read(tmp_path: Path) -> None:
    """A dataset that was copied there; pyarrow takes such a name as bytes only."""
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/donn\xe9es"))
    folder.mkdir()
    write_rows(tmp_path / "t", RecordRow, [RECORD, replace(RECORD, row=1)])
    path = (tmp_path / "t").rename(folder / "t")
    assert [row["row"] for row in read_rows(path)] == [0, 1] == read_integers(path, "row").tolist()
    assert take_rows(path, ["row"], [1]) == [{"row": 1}]
    with closing(ColumnReader(path)) as reader:
        assert reader.read(["row"], 0, 2) == {"row": [0, 1]}


def test_paths_are_written_as_text_a_terminal_can_show() -> None:
    assert printable("cat/ö 1.jpg") == "cat/ö 1.jpg"
    assert printable("a\udcffb") == "a\\xffb"
    assert printable("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"


@given(st.binary(max_size=40))
def test_any_file_name_becomes_printable_utf8(name: bytes) -> None:
    text = printable(name.decode("utf-8", "surrogateescape"))
    assert text.isprintable()
    text.encode("utf-8")


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_rows_are_taken_one_by_one_across_row_groups(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[int], sizes: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("rows")
    count = 0
    for number, size in enumerate(sizes):
        rows = [replace(REJECT, position=count + at) for at in range(size)]
        write_rows(directory / str(number), RejectRow, rows)
        count += size
    table = directory / "table"
    concatenate([directory / str(number) for number in range(3)], table, RejectRow, index=False)
    indices = [index for index in wanted if index < count]
    assert [row["position"] for row in take_rows(table, ["position"], indices)] == indices
    for wrong in ([count], [0, -1]):
        with pytest.raises(IntegrityError, match="rows"):
            take_rows(table, ["position"], wrong)


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5), data=st.data())
def test_any_run_of_rows_is_read_from_its_row_groups(tmp_path: Path, sizes: list[int], data: st.DataObject) -> None:
    count, parts = 0, []
    for number, size in enumerate(sizes):
        rows = [replace(RECORD, position=count + row, shard=f"{number:05d}") for row in range(size)]
        count += size
        parts.append(tmp_path / f"part{number}")
        write_rows(parts[-1], RecordRow, rows)
    concatenate(parts, tmp_path / "t.parquet", RecordRow, index=True)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    with closing(ColumnReader(tmp_path / "t.parquet")) as reader:
        assert reader.num_rows == count
        found = reader.read(["position", "index", "shard"], start, stop)
        with pytest.raises(IntegrityError, match=f"has {count} rows"):
            reader.read(["position"], start, count + 1)
    assert found["position"] == found["index"] == list(range(start, stop))
    shards = [f"{number:05d}" for number, size in enumerate(sizes) for _ in range(size)]
    assert found["shard"] == shards[start:stop]


def test_a_table_that_is_none_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"PAR1 and so on")
    for name in ("t", "missing"):
        with pytest.raises(IntegrityError, match="cannot be read as Parquet"):
            ColumnReader(tmp_path / name)
