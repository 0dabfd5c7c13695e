from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools.record_catalog import RecordCatalog


def test_records_of_several_datasets_have_one_running_number(jpeg_dataset: Path, small_raw_dataset: Path) -> None:
    catalog = RecordCatalog([jpeg_dataset, small_raw_dataset], quiet=True)
    assert len(catalog) == 97
    rows = [*read_rows(jpeg_dataset / "records.parquet"), *read_rows(small_raw_dataset / "records.parquet")]
    assert catalog.labels.tolist() == [row["label"] for row in rows]
    assert catalog.hashes.tolist() == [row["phash"] for row in rows]
    hashes = [row["source_sha256"] for row in rows]
    assert len(set(catalog.files.tolist())) == len(set(hashes)) == len(set(zip(catalog.files, hashes, strict=True)))
    assert catalog.sources([96, 3, 60]) == {number: rows[number]["source"] for number in (96, 3, 60)}
    assert [catalog.dataset_of(number) for number in (0, 59, 60, 96)] == [0, 0, 1, 1]
    reader, index = catalog.locate(61)
    assert (reader.directory, index) == (small_raw_dataset.resolve(), 1)
    assert catalog.class_name(61) == rows[61]["source"].split("/")[0]
    assert catalog.datasets_of((1, 2)) == {0} and not np.any(catalog.is_blank)
    catalog.close()


def test_a_table_of_another_dataset_and_no_dataset_are_refused(
    jpeg_dataset: Path, small_raw_dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(jpeg_dataset, copy)
    shutil.copy(small_raw_dataset / "records.parquet", copy / "records.parquet")
    with pytest.raises(IntegrityError, match="37 rows, the manifests name 60 records"):
        RecordCatalog([copy], quiet=True)
    with pytest.raises(InputError, match="expected a dataset"):
        RecordCatalog([tmp_path], quiet=True)
