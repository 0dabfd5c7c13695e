"""Storage alone: which bytes are read, by how many reads, and that no file stays open."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from open_files import open_files

from lmdali.pipeline.errors import StorageError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import FilePlaces, ShardReader
from lmdali.tools import storage_probe as module
from lmdali.tools.measurement import WindowPlan, measure
from lmdali.tools.storage_probe import OpenFiles, read_fully, read_spans, storage_probe


def test_places_are_where_the_files_hold_the_values(small_jpeg_dataset: Path) -> None:
    reader = ShardReader(small_jpeg_dataset, load_manifest(small_jpeg_dataset))
    indices = np.array([7, 0, reader.manifest.num_records - 1])
    located, places = reader.locate(indices), reader.file_places(indices)
    for at, (shard, offset, size) in enumerate(zip(*(column.tolist() for column in places), strict=True)):
        data = reader.data_file(reader.manifest.shards[shard].name).read_bytes()
        assert data[offset : offset + size] == located.bytes[located.starts[at] : located.stops[at]].tobytes()


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_byte_of_every_record_is_read_and_no_file_stays_open(
    small_jpeg_dataset: Path, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []

    def noted(descriptor: int, buffer: np.ndarray, offset: int) -> None:
        reads.append((offset, len(buffer)))
        read_fully(descriptor, buffer, offset)

    monkeypatch.setattr(module, "read_fully", noted)
    probe = storage_probe(small_jpeg_dataset, num_threads=2, shuffle=shuffle)
    steps = -(-probe.num_images // 16)
    rate = measure([probe], WindowPlan(steps=steps, windows=1))[0]
    assert rate.steps == steps
    assert not open_files(small_jpeg_dataset)
    reader = ShardReader(small_jpeg_dataset, load_manifest(small_jpeg_dataset))
    places = reader.file_places(np.arange(probe.num_images))
    for offset, size in zip(places.offsets.tolist(), places.sizes.tolist(), strict=True):
        assert any(first <= offset and offset + size <= first + length for first, length in reads)


def test_neighbours_in_a_file_are_one_read() -> None:
    columns = np.array([[0, 100, 50], [0, 166, 30], [0, 9000, 10], [1, 9010, 10]]).T
    places = FilePlaces(*columns)
    assert read_spans(places, together=True) == [(0, 100, 96), (0, 9000, 10), (1, 9010, 10)]
    assert read_spans(places, together=False) == [(0, 100, 50), (0, 166, 30), (0, 9000, 10), (1, 9010, 10)]


def test_a_thread_holds_a_few_files_and_asks_for_none_twice(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode())
    files = OpenFiles([*paths, tmp_path / "absent"], random=True)
    assert files.descriptor(0) == files.descriptor(0)
    for number in range(20):
        assert os.pread(files.descriptor(number), 9, 0) == str(number).encode()
    assert len(open_files(tmp_path)) == 16
    with pytest.raises(StorageError, match="absent"):
        files.descriptor(20)
    files.close()
    assert not open_files(tmp_path)


def test_reading_stops_at_the_end_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    buffer = np.zeros(5, np.uint8)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    read_fully(descriptor, buffer, 1)
    os.close(descriptor)
    assert buffer.tobytes() == b"bc\0\0\0"
