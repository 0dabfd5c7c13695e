"""The class table of a development kit, sound and damaged."""

from __future__ import annotations

import importlib.util

import fake_ilsvrc as fake
import pytest

from lmdali.pipeline.errors import InputError, MissingExtraError
from lmdali.tools.class_table import read_class_table


def test_rows_come_as_they_are_in_the_file() -> None:
    by_id = fake.wnids_by_id(6)
    rows = read_class_table(fake.meta_mat(by_id, internal=2), "ILSVRC2012_ID", "meta.mat")
    assert len(rows) == 8 and [row.number for row in rows] != sorted(row.number for row in rows)
    assert sorted((row.number, row.wnid) for row in rows if row.num_children == 0) == list(enumerate(by_id, 1))


def test_a_table_of_one_row_is_a_table() -> None:
    (row,) = read_class_table(fake.meta_mat(["n00000001"], internal=0), "ILSVRC2012_ID", "meta.mat")
    assert row == (1, "n00000001", 0)


def test_a_damaged_table_is_refused_in_one_line() -> None:
    small = fake.meta_mat(fake.wnids_by_id(5), internal=3)
    for damaged in (b"", b"MATLAB", small[:-30]):
        assert "meta.mat: no class table with ILSVRC2012_ID" in refusal(damaged)
    assert "no class table with ILSVRC2010_ID" in refusal(small, "ILSVRC2010_ID")


def test_a_table_that_crashes_its_reader_is_refused_as_well() -> None:
    small = bytearray(fake.meta_mat(fake.wnids_by_id(5), internal=3))
    small[329] = 255  # scipy 1.17 ends with a segmentation fault; another version may raise
    assert any(text in refusal(bytes(small)) for text in ("crashed the reader of its class table", "no class table"))


def refusal(data: bytes, id_field: str = "ILSVRC2012_ID") -> str:
    with pytest.raises(InputError) as caught:
        read_class_table(data, id_field, "meta.mat")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmdali\[imagenet\]'"):
        read_class_table(b"", "ILSVRC2012_ID", "meta.mat")
