"""Half of each class, and parts made apart, of a source that is read in blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from parquet_sources import hub_table, write
from test_dataset_writer import fingerprints
from test_parquet_reader import count_groups

from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools import conversion
from lmdali.tools.half_split import Half
from lmdali.tools.sources import open_source

OPTIONS = ("--size", 32, "-j", 1, "--quiet", "--max-bad", 1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, small_source: Path) -> Path:
    """The pictures of `small_source`, shuffled, in row groups of 7."""
    files = sorted(path.relative_to(small_source).as_posix() for path in small_source.rglob("*.*"))
    files = [files[n] for n in np.random.default_rng(3).permutation(len(files))]
    images = [(small_source / file).read_bytes() for file in files]
    labels = [int(file.startswith("b")) for file in files]
    path = tmp_path_factory.mktemp("table") / "train.parquet"
    return write(path, hub_table(images, labels, files, ("a", "b")), row_group_size=7)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of few rows: ends of shards and of row groups do not meet."""
    monkeypatch.setattr(conversion, "_MIN_SHARD_SOURCES", 9)


def test_parts_of_row_groups_are_merged_to_the_bytes_of_an_undivided_conversion(tmp_path: Path, table: Path) -> None:
    assert run("convert", table, tmp_path / "whole", *OPTIONS) == 0
    assert len(load_manifest(tmp_path / "whole").shards) == 5
    for part in ("2/2", "1/2"):
        assert run("convert", table, tmp_path / part[0], *OPTIONS, "--part", part) == 0
    assert run("merge", tmp_path / "1", tmp_path / "2", "--quiet") == 0
    assert fingerprints(tmp_path / "1") == fingerprints(tmp_path / "whole")


def test_halves_of_row_groups_share_nothing_and_leave_nothing_out(
    tmp_path: Path, table: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(dataset: Path) -> dict[str, Any]:
        names = ("label", "source_sha256", "crc32c")
        return {row["source"]: [row[name] for name in names] for row in read_rows(dataset / "records.parquet")}

    whole = rows(make_dataset(table, tmp_path / "whole", size=32))
    halves = []
    sides: tuple[Half, Half] = ("first", "second")
    for half in sides:
        source = open_source(table, split_half=half)
        assert source.scan.blocks is not None and sum(source.scan.blocks) == len(source.entries) == 20
        assert source.class_counts == (10, 10)
        assert run("convert", table, tmp_path / half, *OPTIONS, "--split-half", half) == 0
        halves.append(rows(tmp_path / half))
    assert not halves[0].keys() & halves[1].keys()
    assert halves[0] | halves[1] == whole and len(whole) == 37
    begun = count_groups(monkeypatch)
    source = open_source(table, split_half="second")
    order = conversion.plan_order(source.scan, 0).indices(0, 20)
    assert [source.read(source.entries[int(index)]) for index in order]
    assert set(begun.values()) == {1} and len(begun) == 6, "rows that are left out make no row group be read again"
