"""`place_checks`: what a directory or an address is, and what is wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lmdali.pipeline import filesystem
from lmdali.pipeline.eigenbasis import STATISTICS_FILE
from lmdali.pipeline.manifest import MANIFEST_FILE
from lmdali.tools import place_checks
from lmdali.tools.place_checks import cache_findings, place_findings


def test_a_dataset_beside_the_memory(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = place_findings(small_jpeg_dataset)
    assert (finding.what, finding.verdict) == (str(small_jpeg_dataset), "ok")
    assert finding.found.startswith("37 records, jpeg, ") and "fits into the memory" in finding.found
    monkeypatch.setattr(place_checks, "available_memory", lambda: 1000)
    (finding,) = place_findings(small_jpeg_dataset)
    assert "more than the memory" in finding.found
    monkeypatch.setattr(place_checks, "available_memory", lambda: None)
    (finding,) = place_findings(small_jpeg_dataset)
    assert "memory" not in finding.found


def test_a_dataset_over_a_network_or_without_statistics(
    small_jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shutil.copytree(small_jpeg_dataset, tmp_path / "dataset")
    (dataset / STATISTICS_FILE).unlink()
    (tmp_path / "mounts").write_text("1 0 0:1 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "mounts")
    contents, statistics, network = place_findings(dataset)
    assert contents.verdict == "ok" and contents.found.endswith("free on nfs4")
    assert (statistics.verdict, statistics.advice) == ("caution", f"lmdali pca {dataset}")
    assert network.verdict == "caution" and network.advice.startswith(f"lmdali stage {dataset} DIR")


def test_a_damaged_manifest_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("{}")
    (finding,) = place_findings(tmp_path)
    assert finding.verdict == "problem" and finding.found.startswith("ManifestError: ")


def test_a_folder_to_write_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = place_findings(tmp_path)
    assert finding.verdict == "ok" and "MB free" in finding.found
    monkeypatch.setattr(place_checks.os, "access", lambda path, mode: False)  # as for others than root
    (finding,) = place_findings(tmp_path)
    assert finding.verdict == "problem" and "cannot be written" in finding.found
    (finding,) = place_findings(tmp_path / "none")
    assert finding.verdict == "problem" and finding.found == "no such directory"


def test_what_may_not_be_looked_at_is_a_problem_of_that_place(tmp_path: Path) -> None:
    (finding,) = place_findings(tmp_path / ("x" * 300))  # as a folder that may not be entered, for others than root
    assert finding.verdict == "problem" and finding.found.startswith("OSError: ") and finding.advice
    (tmp_path / "file").touch()
    (finding,) = place_findings(tmp_path / "file")
    assert (finding.verdict, finding.found) == ("problem", "no directory")


def test_an_address(small_jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDALI_CACHE_DIR", str(tmp_path / "cache"))
    (finding,) = place_findings(f"file://{small_jpeg_dataset}")
    assert finding.verdict == "ok" and finding.found.startswith("37 records, jpeg, ")
    (finding,) = place_findings(f"file://{tmp_path}/none")
    assert finding.verdict == "problem" and finding.found.startswith("RemoteError: ")


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDALI_CACHE_DIR", str(tmp_path / "cache"))
    (finding,) = cache_findings()
    assert finding.verdict == "ok" and finding.found.startswith(f"{tmp_path}/cache, ")
    monkeypatch.setenv("LMDALI_CACHE_BYTES", "40 GB")
    (finding,) = cache_findings()
    assert finding.verdict == "caution" and "LMDALI_CACHE_BYTES is '40 GB'" in finding.found
    monkeypatch.delenv("LMDALI_CACHE_BYTES")
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMDALI_CACHE_DIR", str(tmp_path / "file"))
    (finding,) = cache_findings()
    assert finding.verdict == "caution" and "cannot be written" in finding.found
