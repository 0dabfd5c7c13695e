"""Several Parquet files as one source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from parquet_sources import hub_table, write

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools import parquet_scan
from lmdali.tools.source_entries import own_name
from lmdali.tools.sources import open_source


def test_files_follow_each_other_and_every_entry_has_a_path_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", hub_table([b"x"] * 3, [0, 1, 0], ["a.jpg", None, "a.jpg"]))
    write(tmp_path / "train-1.parquet", hub_table([b"x"] * 2, [2, 1], ["a.jpg", "b/c"]), row_group_size=1)
    source = open_source(tmp_path)
    assert source.kind == "parquet"
    assert [(e.path, e.label, e.file, e.offset) for e in source.entries] == [
        ("train-0.parquet/a.jpg", 0, 0, 0),
        ("train-0.parquet#1", 1, 0, 1),
        ("train-0.parquet#2", 0, 0, 2),
        ("train-1.parquet/a.jpg", 2, 1, 0),
        ("train-1.parquet/b/c", 1, 1, 1),
    ]
    assert source.class_names == ("0", "1", "2")
    assert source.scan.blocks == (3, 1, 1)
    assert [own_name(e) is not None for e in source.entries] == [True, False, False, True, False]


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/donn\xe9es"))
    folder.mkdir()
    write(tmp_path / "train.parquet", hub_table([b"x", b"yz"], [0, 1])).rename(folder / "train.parquet")
    source = open_source(folder)
    assert [entry.label for entry in source.entries] == [0, 1]
    assert [source.read(entry) for entry in source.entries] == [b"x", b"yz"]


def test_files_that_do_not_belong_together_or_are_empty_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a/train-0.parquet", hub_table([b"x"], [0], names=("p", "q")))
    write(tmp_path / "a/train-1.parquet", hub_table([b"x"], [0], names=("q", "p")))
    with pytest.raises(InputError, match=r"train-1\.parquet': its class names are not those of .*train-0\.parquet'"):
        open_source(tmp_path / "a")
    write(tmp_path / "b/train-0.parquet", hub_table([], []))
    with pytest.raises(InputError, match="1 Parquet files without a single row"):
        open_source(tmp_path / "b")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(InputError, match=r"pipe\.parquet': no regular file"):
        open_source(tmp_path / "pipe.parquet", "parquet")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_names_for_labels_are_classes_sorted_or_those_of_a_list(tmp_path: Path, kind: Any) -> None:
    for number, names in enumerate((["hat", "dress"], ["coat", "hat"])):
        table = hub_table([b"x"] * 2, [0, 0]).set_column(1, "label", pa.array(names, pa.string()).cast(kind))
        write(tmp_path / f"train-{number}.parquet", table, row_group_size=1)
    source = open_source(tmp_path)
    assert source.class_names == ("coat", "dress", "hat")
    assert [entry.label for entry in source.entries] == [2, 1, 0, 2]
    given = open_source(tmp_path, classes=("hat", "dress", "coat"))
    assert [entry.label for entry in given.entries] == [0, 1, 2, 0]


def test_names_that_a_list_lacks_and_numbers_beside_names_are_refused(tmp_path: Path) -> None:
    named = hub_table([b"x"] * 2, [0, 0]).set_column(1, "label", pa.array(["hat", "dress"]))
    write(tmp_path / "train-0.parquet", named)
    with pytest.raises(InputError, match=r"1 labels are not in the class list of 1 names \('dress'\)"):
        open_source(tmp_path, classes=("hat",))
    write(tmp_path / "train-1.parquet", hub_table([b"x"], [0]))
    with pytest.raises(InputError, match=r"train-1\.parquet': its labels are not of the kind of those of"):
        open_source(tmp_path)


def test_a_missing_class_is_refused_and_options_of_parquet_stay_there(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", hub_table([b"x"], [0], names=("p",)))
    with pytest.raises(InputError, match=r"no image of 1 classes of the class list \('q'\)"):
        open_source(file, classes=("p", "q"))
    (tmp_path / "list.txt").write_text("a.jpg 0\n")
    for name in ("split", "image_column", "label_column"):
        with pytest.raises(ConfigError, match=r"belongs to sources of the kind parquet.*; this is taken for 'list'"):
            open_source(tmp_path / "list.txt", **{name: "x"})  # type: ignore[arg-type]


def crash(*arguments: object) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_file_that_crashes_the_reader_takes_no_more_than_its_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.parquet", hub_table([b"x"], [0]))
    monkeypatch.setattr(parquet_scan, "scan_table", crash)
    with pytest.raises(InputError, match=r"train\.parquet': crashed the Parquet reader \(SIGSEGV\)"):
        open_source(tmp_path)
