"""Halves of a source: disjoint, together everything, equal per class, and the same under any file order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.half_split import take_half
from lmdali.tools.source_entries import EntryTable, Ignored, Scan
from lmdali.tools.sources import open_source

NAMES = st.binary(min_size=1, max_size=8).filter(lambda name: b"\x00" not in name).map(os.fsdecode)
ENTRIES = st.lists(st.tuples(NAMES, st.integers(0, 3)), max_size=60, unique_by=lambda entry: entry[0])


def scan_of(entries: list[tuple[str, int]], blocks: tuple[int, ...] | None = None) -> Scan:
    table = EntryTable()
    for path, label in entries:
        table.append(path, label)
    return Scan(("a", "b", "c", "d"), table, Ignored(), blocks)


def listed(scan: Scan) -> list[tuple[str, int]]:
    return [(entry.path, entry.label) for entry in scan.entries]


@given(ENTRIES)
def test_halves_share_nothing_leave_nothing_out_and_are_equal_per_class(entries: list[tuple[str, int]]) -> None:
    first, second = (listed(take_half(scan_of(entries), half)) for half in ("first", "second"))
    assert sorted(first + second) == sorted(entries)
    for label in range(4):
        sizes = [sum(entry[1] == label for entry in half) for half in (first, second)]
        assert sizes[0] - sizes[1] in (0, 1)
    assert [entry for entry in entries if entry in set(first)] == first, "the source's order is kept"


@given(ENTRIES, st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(entries: list[tuple[str, int]], random: object) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(listed(take_half(scan_of(entries), "first"))) == sorted(listed(take_half(scan_of(shuffled), "first")))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_blocks_keep_the_entries_that_are_left_in_them(blocks: list[int]) -> None:
    entries = [(f"{block}/{number}", 0) for block, size in enumerate(blocks) for number in range(size)]
    half = take_half(scan_of(entries, tuple(blocks)), "second")
    assert half.blocks is not None and len(half.blocks) == len(blocks)
    counted = [sum(path.startswith(f"{block}/") for path, _ in listed(half)) for block in range(len(blocks))]
    assert list(half.blocks) == counted


def test_the_split_is_pinned() -> None:
    scan = scan_of([(f"n01440764/n01440764_{number}.JPEG", 0) for number in range(10)])
    numbers = [int(path.split("_")[1].split(".")[0]) for path, _ in listed(take_half(scan, "first"))]
    assert numbers == PINNED
    with pytest.raises(ConfigError, match="split_half"):
        take_half(scan, "third")  # type: ignore[arg-type]


def test_a_half_without_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/only.jpg").touch()
    assert len(open_source(tmp_path, split_half="first").entries) == 1
    with pytest.raises(InputError, match="the second half of each class is empty, for none has a second image"):
        open_source(tmp_path, split_half="second")


PINNED = [0, 1, 2, 3, 8]
