"""Rows read in the order of plans, and whole conversions of Parquet files."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from parquet_sources import hub_table, write

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools import parquet_reader
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.parquet_reader import ParquetReader
from lmdali.tools.range_reader import stamp_of
from lmdali.tools.source_entries import SourceEntry
from lmdali.tools.sources import Source, open_source

CONFIG = ConvertConfig(size=32, shard_bytes=1_000_000)


def entry(row: int, file: int = 0) -> SourceEntry:
    return SourceEntry(f"t.parquet#{row}", 0, file, row)


def reader_of(*files: Path, column: str = "image.bytes") -> ParquetReader:
    return ParquetReader(tuple(map(str, files)), tuple(stamp_of(str(file)) for file in files), column)


def count_groups(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each row group of each file is begun."""
    begun: Counter[tuple[str, int]] = Counter()
    open_before = parquet_reader.open_parquet

    class Counting:
        def __init__(self, path: str) -> None:
            self._path, self._file = path, open_before(path)

        def iter_batches(self, **options: Any) -> Any:
            begun[Path(self._path).name, options["row_groups"][0]] += 1
            return self._file.iter_batches(**options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(parquet_reader, "open_parquet", Counting)
    return begun


@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0"}])
@pytest.mark.parametrize("as_struct", [True, False])
def test_rows_come_in_any_order_and_in_order_from_one_pass(
    tmp_path: Path, as_struct: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [b"%d" % number * (number % 7) for number in range(50)]
    table = hub_table(images, [0] * 50) if as_struct else pa.table({"image": images, "label": [0] * 50})
    file = write(tmp_path / "t.parquet", table, row_group_size=20, **options)
    reader = reader_of(file, column="image.bytes" if as_struct else "image")
    begun = count_groups(monkeypatch)
    for row in (0, 1, 2, 9, 19, 20, 33, 49):
        assert reader.read(entry(row)) == images[row]
    assert set(begun.values()) == {1} and len(begun) == 3
    for row in np.random.default_rng(1).integers(0, 50, 60).tolist():
        assert reader.read(entry(row)) == images[row]
    assert pickle.loads(pickle.dumps(reader)) == reader
    reader.close()


def test_a_row_without_bytes_is_a_named_reject(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "a.jpg"}, None, {"bytes": b"x", "path": None}], kind)
    file = write(tmp_path / "t.parquet", pa.table({"image": images, "label": [0, 0, 0]}))
    reader = reader_of(file)
    for row in (0, 1):
        with pytest.raises(SourceRejected) as caught:
            reader.read(entry(row))
        assert caught.value.reason == Rejection.EMPTY
    assert reader.read(entry(2)) == b"x"


def test_a_file_that_is_gone_changed_or_damaged_stops_the_run(tmp_path: Path) -> None:
    images = [np.random.default_rng(row).bytes(3000) for row in range(40)]
    file = write(tmp_path / "t.parquet", hub_table(images, [0] * 40), row_group_size=20, use_dictionary=False)
    content = file.read_bytes()
    gone = write(tmp_path / "gone.parquet", hub_table([b"x"], [0]))
    reader = reader_of(file, gone)
    gone.unlink()
    with pytest.raises(InputError, match=r"gone\.parquet': cannot be opened \(No such file"):
        reader.read(entry(0, file=1))
    with pytest.raises(InputError, match="has 40 rows and no row 40: changed since the scan"):
        reader.read(entry(40))
    reader.close()
    second = content.index(images[20][:50])
    file.write_bytes(content[: second - 40] + bytes(40) + content[second:])
    os.utime(file, ns=(0, 0))
    with pytest.raises(InputError, match=r"t\.parquet': changed after it was scanned .* modification time differs"):
        reader.read(entry(19))
    reader = reader_of(file)
    assert reader.read(entry(19)) == images[19], "what is sound is read"
    with pytest.raises(InputError, match=r"t\.parquet', row group 1: its images do not decode .* add --resume"):
        reader.read(entry(20))
    reader.close()


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of a worker reject the image; the run goes on."""
    reader = reader_of(write(tmp_path / "t.parquet", hub_table([b"x"], [0])))

    def refuse(column: object) -> object:
        raise pa.ArrowMemoryError("malloc of size 9 failed")

    with monkeypatch.context() as patch:
        patch.setattr(parquet_reader, "leaf", refuse)
        with pytest.raises(MemoryError, match="malloc"):
            reader.read(entry(0))
    assert reader.read(entry(0)) == b"x"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, small_source: Path) -> tuple[Path, Path]:
    """The pictures of `small_source` as two files of row groups of 7, and the list file of them."""
    folder = tmp_path_factory.mktemp("hub")
    files = sorted(path.relative_to(small_source).as_posix() for path in small_source.rglob("*.*"))
    order = np.random.default_rng(3).permutation(len(files)).tolist()
    images = [(small_source / files[n]).read_bytes() for n in order]
    labels = [int(files[n].startswith("a")) for n in order]  # the table counts its classes the other way round
    paths = [files[n] for n in order]
    for number, rows in enumerate((slice(0, 25), slice(25, 40))):
        table = hub_table(images[rows], labels[rows], paths[rows], ("b", "a"))
        write(folder / f"hub/data/train-{number:05d}-of-00002.parquet", table, row_group_size=7)
    (folder / "list.txt").write_text("".join(f"{files[n]} {int(files[n].startswith('b'))}\n" for n in order))
    return folder / "hub", folder / "list.txt"


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def opened(hub: Path) -> Source:
    return open_source(hub, classes=("a", "b"))


def test_a_conversion_is_the_same_for_any_workers_and_after_an_interruption(
    tmp_path: Path, hub: tuple[Path, Path]
) -> None:
    source = opened(hub[0])
    assert source.kind == "parquet" and source.describe() == "parquet: 40 images, 2 classes"
    assert source.scan.blocks == (7, 7, 7, 4, 7, 7, 1)
    summary = convert(source, tmp_path / "one", CONFIG, workers=1, quiet=True)
    assert (summary.num_stored, summary.rejected) == (37, {"truncated": 2, "empty": 1})
    convert(opened(hub[0]), tmp_path / "three", CONFIG, workers=3, quiet=True)
    assert hashes(tmp_path / "three") == hashes(tmp_path / "one")


def test_a_resumed_conversion_has_the_same_bytes_and_reads_each_row_group_once_per_shard(
    tmp_path: Path, hub: tuple[Path, Path], make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from lmdali.pipeline.dataset_writer import DatasetWriter
    from lmdali.tools.conversion import make_plan, shard_jobs
    from lmdali.tools.shard_making import make_shard

    source = opened(hub[0])
    plan = replace(make_plan(source, CONFIG), shard_sources=9)
    begun = count_groups(monkeypatch)

    def shards(out: Path, number: int, *, resume: bool) -> int:
        writer = DatasetWriter(out, plan)
        done = 0
        with writer.hold(resume=resume, overwrite=False):
            for job in list(shard_jobs(source, CONFIG, writer))[:number]:
                begun.clear()
                make_shard(pickle.loads(pickle.dumps(job)))
                assert set(begun.values()) == {1}, "each row group of a shard is begun once"
                done += 1
            if not writer.unfinished():
                writer.publish()
        return done

    assert shards(tmp_path / "whole", 9, resume=False) == 5
    assert shards(tmp_path / "halves", 2, resume=False) == 2
    assert shards(tmp_path / "halves", 9, resume=True) == 3
    assert hashes(tmp_path / "halves") == hashes(tmp_path / "whole")


def test_records_equal_those_of_the_same_pictures_in_a_folder(
    tmp_path: Path, hub: tuple[Path, Path], small_source: Path
) -> None:
    convert(opened(hub[0]), tmp_path / "table", CONFIG, workers=1, quiet=True)
    folder = open_source(small_source)
    convert(folder, tmp_path / "folder", CONFIG, workers=1, quiet=True)
    columns = ("label", "source_bytes", "source_sha256", "stored_bytes", "crc32c", "oddities")

    def rows(name: str) -> dict[str, list[Any]]:
        found = {}
        for row in read_rows(tmp_path / name / "records.parquet"):
            path = row["source"].split(".parquet/")[-1]
            found[path] = [row[column] for column in columns]
        return found

    assert rows("table") == rows("folder") and len(rows("table")) == 37
    assert load_manifest(tmp_path / "table").class_names == ("a", "b")
    assert load_manifest(tmp_path / "table").class_counts == load_manifest(tmp_path / "folder").class_counts
    # Records lie in the order of the plan: whole row groups, each from its first row to its last.
    found = [row["source"] for row in read_rows(tmp_path / "table" / "records.parquet")]
    place = {path: n for n, path in enumerate(e.path for e in opened(hub[0]).entries)}
    group = [np.searchsorted([7, 14, 21, 25, 32, 39], place[path], side="right") for path in found]
    assert len([n for n, g in enumerate(group) if n == 0 or group[n - 1] != g]) == len(set(group))
