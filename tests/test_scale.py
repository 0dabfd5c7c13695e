from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from lmdali.pipeline.manifest import RecordIndex, load_manifest
from lmdali.pipeline.records import Record
from lmdali.pipeline.sampler import EpochOrder
from lmdali.pipeline.shard_reader import ShardReader, _table

T = TypeVar("T")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scale_dataset(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's own maker of datasets; its workers import it by name, from the same path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("scale_dataset")


def probe(name: str, dataset: Path) -> dict[str, Any]:
    """What one of the benchmark's processes answers; it fails by itself where a batch is not the one that was due."""
    command = [sys.executable, str(BENCHMARKS / "scale_probe.py"), name, str(dataset), str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def lines_run(work: Callable[[], T]) -> tuple[T, int]:
    """What some work returns, and how many lines of Python it ran: what depends on no machine, as its time would."""
    count = 0

    def line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        result = work()
    finally:
        sys.settrace(before)
    return result, count


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that some work takes, NumPy's arrays among it."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("records", "shards", "reject_share"),
    [(1_281_167, 111, 0.001), (1_281_167, 1000, 0.01), (14_197_122, 1224, 0.02)],
)
def test_a_manifest_of_millions_of_records_opens_with_work_for_each_shard_and_little_memory(
    tmp_path: Path, scale_dataset: Any, records: int, shards: int, reject_share: float
) -> None:
    case = scale_dataset.Case(num_records=records, num_shards=shards, reject_share=reject_share)
    saved = case.manifest(case.shards()).save(tmp_path)
    manifest, lines = lines_run(lambda: load_manifest(tmp_path))
    index, more = lines_run(lambda: RecordIndex(manifest))
    assert manifest == saved and index.num_records == records
    assert lines + more < 200 * shards
    assert peak_bytes(lambda: RecordIndex(load_manifest(tmp_path))) < 150e6


def test_the_middle_of_an_epoch_is_found_without_what_comes_before_it() -> None:
    def middle() -> NDArray[np.int64]:
        return EpochOrder(10**9, seed=0, epoch=7, shuffle=True).indices(5 * 10**8, 5 * 10**8 + 128)

    found, lines = lines_run(middle)
    assert len(set(found.tolist())) == 128
    assert lines < 500
    assert peak_bytes(middle) < 1e6


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def test_a_table_takes_memory_where_it_is_written_and_nowhere_else() -> None:
    before = anonymous_bytes()
    table = _table(14_000_000)
    table[::140_000] = 1  # a hundred shards of many
    assert anonymous_bytes() - before < 5e6  # of 112 MB, which huge pages would make of it
    assert int(table[140_000]) == 1 and len(_table(0)) == 0


def test_a_synthetic_dataset_holds_every_record_it_names(tmp_path: Path, scale_dataset: Any) -> None:
    case = scale_dataset.Case(num_records=600, num_shards=7, num_classes=9, reject_share=0.1)
    scale_dataset.make_dataset(tmp_path / "d", case)
    tiny, full_size = (tmp_path / "d" / name for name in (scale_dataset.TINY, scale_dataset.FULL_SIZE))
    manifest = load_manifest(tiny)
    assert (manifest.num_records, manifest.num_rejected, len(manifest.shards)) == (600, 67, 7)
    assert manifest.file_bytes > 0.99 * 600 * scale_dataset.STORED_BYTES
    reader = ShardReader(tiny, manifest)
    reader.check_files()

    def number_and_label(record: Record) -> tuple[int, int]:
        return int.from_bytes(record.data[-12:], "little"), record.label

    assert [reader.read(n, number_and_label) for n in range(600)] == [(n, n % 9) for n in range(600)]
    ShardReader(full_size, load_manifest(full_size)).check_files()

    resumed, epoch = (probe(name, tmp_path / "d") for name in ("resume", "descriptors"))
    assert 0 <= resumed["seconds"] <= resumed["first_batch_seconds"]
    assert epoch["complete"] and (epoch["samples"], epoch["mapped_shards"]) == (600, 7)
    assert epoch["most_open"] < 64
