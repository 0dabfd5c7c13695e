"""A thousand flipped bits, and files of many lengths: nothing wrong is delivered and nothing crashes. See damage.py.

`LMDALI_FLIPS` sets how many bits are flipped; `LMDALI_LENGTHS=1` tries every length of a shard of a megabyte.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EVERY_LENGTH = os.environ.get("LMDALI_LENGTHS") == "1"
FLIPS = int(os.environ.get("LMDALI_FLIPS", "1000"))
CHILD = Path(__file__).with_name("damage.py")


def harmed(dataset: Path, copy: Path, what: str, count: int, seed: int = 27) -> dict[str, int]:
    """What the child counted; it worked on a copy."""
    shutil.copytree(dataset, copy)
    command = [sys.executable, CHILD, copy, str(count), str(seed), what]
    # No limit of its own but that of the whole test: how long it takes is for the caller to say.
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    counts: dict[str, int] = json.loads(done.stdout)
    print(what, counts)
    return counts


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_flipped_bits_in_values_are_refused_by_name(
    encoding: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dataset = request.getfixturevalue(f"small_{encoding}_dataset")
    counts = harmed(dataset, tmp_path / "copy", "values", FLIPS // 2)
    assert counts["refused"] > 0.95 * counts["flips"] > 0
    assert (counts.get("wrong", 0), counts.get("unnamed", 0), counts["not found"]) == (0, 0, 0)
    assert counts["verified"] >= FLIPS // 20


def test_flipped_bits_in_pages_never_give_other_records(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    counts = harmed(small_jpeg_dataset, tmp_path / "copy", "structure", FLIPS * 3 // 10)
    assert counts["refused"] > 100 and counts["harmless"] > 100
    assert (counts.get("wrong", 0), counts.get("unnamed", 0), counts["not found"]) == (0, 0, 0)


def test_flipped_bits_do_not_pass_a_loader(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    counts = harmed(small_jpeg_dataset, tmp_path / "copy", "loader", FLIPS // 50)
    assert counts["refused"] > 0.9 * counts["flips"] > 0
    assert (counts.get("wrong", 0), counts.get("unnamed", 0)) == (0, 0)


def test_files_of_another_length_are_refused_before_they_are_mapped(
    small_jpeg_dataset: Path, small_source: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = small_jpeg_dataset
    if EVERY_LENGTH:
        dataset = make_dataset(small_source, tmp_path / "megabyte", shard_sources=40, size=96, encoding="raw")
    counts = harmed(dataset, tmp_path / "copy", "lengths", 1 if EVERY_LENGTH else 997)
    assert counts["lengths"] > 50
    assert (counts.get("wrong", 0), counts.get("unnamed", 0)) == (0, 0)
