"""Cold and warm, proved: pages dropped, pages counted, bytes that a device delivered."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import StorageError
from lmdali.tools import cold_run, page_cache
from lmdali.tools.cold_run import CacheState
from lmdali.tools.page_cache import data_files, device_bytes, evict, resident_share
from lmdali.tools.profiler import ProfileConfig, profile_dataset
from lmdali.tools.throughput import ThroughputReport
from lmdali.tools.throughput_tables import print_report

QUICK = ProfileConfig(batch_size=8, num_threads=1, steps=10, device="cpu", cold=True)


def profile(dataset: Path, config: ProfileConfig = QUICK) -> ThroughputReport:
    return profile_dataset(dataset, config, model=None, augment=AugmentConfig(crop_size=24), quiet=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """64 pages that are in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(64 * mmap.PAGESIZE))
    path.read_bytes()
    return path


@pytest.fixture
def droppable(file: Path) -> Path:
    if resident_share([file]) is None:
        pytest.skip("this system has no mincore")
    evict([file])
    if resident_share([file]) != 0:
        pytest.skip(f"{file.parent} lies in a file system whose pages cannot be dropped (tmpfs)")
    return file


def test_dropped_pages_are_seen_to_be_gone_and_to_come_back(droppable: Path) -> None:
    before = device_bytes()
    droppable.read_bytes()
    assert resident_share([droppable]) == 1
    after = device_bytes()
    assert before is None or after is None or after - before >= 64 * mmap.PAGESIZE


def test_pages_that_are_mapped_stay_and_are_seen_to(droppable: Path) -> None:
    with droppable.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:]) == 64 * mmap.PAGESIZE
        evict([droppable])
        assert resident_share([droppable]) == 1
    evict([droppable])
    assert resident_share([droppable]) == 0


def test_what_the_system_does_not_tell_is_not_made_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_IO", file.parent / "absent")
    assert device_bytes() is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert resident_share([file]) is None
    with pytest.raises(StorageError, match="absent"):
        evict([file.parent / "absent"])


@pytest.mark.parametrize(
    ("delivered", "state"), [(None, None), (0.0, "warm"), (400.0, "warm"), (3000.0, "mixed"), (9000.0, "cold")]
)
def test_the_share_that_a_device_delivered_names_the_state(delivered: float | None, state: str | None) -> None:
    assert cold_run._temperature(delivered, 10_000) == state


@pytest.mark.parametrize(
    ("before", "delivered", "problem"),
    [
        (0.0, 9000.0, None),
        (0.0, None, None),
        (None, 9000.0, None),
        (0.9, 9000.0, "90% of the dataset's pages stayed"),
        (0.0, 10.0, "something else keeps the dataset in memory"),
        (None, None, "tells neither"),
    ],
)
def test_a_run_is_cold_only_if_everything_that_is_told_says_so(
    before: float | None, delivered: float | None, problem: str | None
) -> None:
    state = cold_run._temperature(delivered, 10_000)
    cache = CacheState(state=state, resident_before=before, resident_after=None, device_bytes_per_image=delivered)
    found = cold_run._problem(cache, 10_000)
    assert found is None if problem is None else problem in (found or "")


@pytest.fixture
def unmapped(small_jpeg_dataset: Path, tmp_path: Path) -> Path:
    """A dataset of which no loader that another test has left behind holds a page."""
    return Path(shutil.copytree(small_jpeg_dataset, tmp_path / "set"))


@pytest.mark.usefixtures("droppable")
def test_a_cold_run_is_measured_beside_the_warm_one(unmapped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = profile(unmapped)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    cold = document["cold"]
    assert cold["problem"] is None and cold["cache"]["resident_before"] == 0
    assert cold["cache"]["resident_after"] > 0.5
    for name in ("storage_sequential", "storage", "read_sequential", "read", "loader"):
        assert cold[name]["images_per_second"] > 0
    delivered = cold["cache"]["device_bytes_per_image"]
    assert delivered is None or delivered > 0.5 * document["setting"]["mean_record_bytes"]
    assert document["cache"]["state"] in (None, "warm")
    assert report.verdict.bound is None
    machine = report.machine | {"cpu": "Some Processor"}
    print_report(replace(report, machine=machine, setting=replace(report.setting, dataset="imagenet/train")))
    lines = capsys.readouterr().out.splitlines()
    assert any("loader, cold" in line for line in lines) and any("LMDB read, cold, in order" in line for line in lines)
    assert max(len(line.rstrip()) for line in lines) <= 100


def test_a_cache_that_could_not_be_dropped_makes_the_report_invalid(
    unmapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in data_files(unmapped):
        path.read_bytes()
    ignored: list[Any] = []
    monkeypatch.setattr(cold_run, "evict", ignored.append)
    report = profile(unmapped)
    assert ignored
    assert report.verdict.word == "INVALID"
    assert "the cold run was not cold" in report.verdict.reason
    assert profile(unmapped, replace(QUICK, cold=False)).cold is None
