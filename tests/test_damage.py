"""A thousand flipped bits, and files of every length: nothing wrong is delivered and nothing crashes. See damage.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FLIPS = int(os.environ.get("LMDALI_FLIPS", "1000"))
CHILD = Path(__file__).with_name("damage.py")


def harmed(dataset: Path, copy: Path, what: str, count: int, seed: int = 27) -> dict[str, int]:
    """What the child counted; it worked on a copy."""
    shutil.copytree(dataset, copy)
    command = [sys.executable, CHILD, copy, str(count), str(seed), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + FLIPS)
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
    counts = harmed(small_jpeg_dataset, tmp_path / "copy", "loader", FLIPS // 25)
    assert counts["refused"] > 0.9 * counts["flips"] > 0
    assert (counts.get("wrong", 0), counts.get("unnamed", 0)) == (0, 0)


def test_files_of_another_length_are_refused_before_they_are_mapped(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    counts = harmed(small_jpeg_dataset, tmp_path / "copy", "lengths", 997)
    assert counts["lengths"] > 50
    assert (counts.get("wrong", 0), counts.get("unnamed", 0)) == (0, 0)
