from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmdali.pipeline import shard_header, shard_reader
from lmdali.pipeline.dataset_plan import DatasetPlan
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import RecordError, ShardError
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.records import Record, pack_record, parse_record, record_crc
from lmdali.pipeline.shard_figures import shard_from_json
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_output import ShardContent
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_walk import iterate_lmdb
from lmdali.pipeline.table_reader import read_rows

Kept = tuple[bytes, int]


def keep(record: Record) -> Kept:
    return bytes(record.data), record.label


def reader_of(directory: Path) -> ShardReader:
    return ShardReader(directory, load_manifest(directory))


def everything(reader: ShardReader) -> list[Kept]:
    return [reader.read(index, keep) for index in range(reader.manifest.num_records)]


def tiny_dataset(directory: Path, num_shards: int, per_shard: int = 2) -> Path:
    """Records that hold their own number, without pictures, in many shards."""
    plan = DatasetPlan(8, "jpeg", ("a",), num_shards * per_shard, per_shard, {}, {})
    writer = DatasetWriter(directory, plan)
    with writer.hold(resume=False, overwrite=False):
        for name, first, count in plan.shards():
            with writer.open_shard(name, first, count) as shard:
                for position in range(first, first + count):
                    shard.put(position, "x", b"record %d" % position, label=0, height=8, width=8)
                writer.finish_shard(name, shard, ShardContent([], [], Moments.zero(8, 8)))
    documents = [json.loads((directory / "shards" / name / "shard.json").read_text()) for name, _, _ in plan.shards()]
    infos = [shard_from_json(document["shard"]) for document in documents]
    Manifest(8, "jpeg", ("a",), (plan.num_sources,), plan.num_sources, 0, tuple(infos), {}, {}, {}).save(directory)
    return directory


@pytest.fixture
def damaged(small_jpeg_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the small dataset that may be changed."""
    return Path(shutil.copytree(small_jpeg_dataset, tmp_path / "copy"))


def test_records_are_those_of_the_table_in_its_order(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    rows = read_rows(small_jpeg_dataset / "records.parquet")
    assert [row["index"] for row in rows] == list(range(37))
    for row in rows:
        data, label = reader.read(row["index"], keep)
        assert (len(data), label) == (row["stored_bytes"], row["label"])
        assert record_crc(data, label) == row["crc32c"]
    assert {row["position"] for row in rows} == set(range(40)) - {
        row["position"] for row in read_rows(small_jpeg_dataset / "rejects.parquet")
    }


def test_records_outside_the_dataset_do_not_exist(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    for index in (-1, 37, 10**12):
        with pytest.raises(IndexError):
            reader.read(index, keep)


def test_data_is_a_view_of_the_shard_and_not_a_copy(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    assert reader.read(0, lambda record: record.data.readonly and record.data.contiguous)


@pytest.mark.parametrize(("module", "name"), [(shard_header, "read_header"), (shard_reader, "check_size")])
def test_a_shard_that_is_removed_while_it_is_looked_at_is_missing(
    damaged: Path, module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread removes a damaged one of a cache."""
    look = getattr(module, name)

    def look_and_remove(path: Path, **options: Any) -> Any:
        found = look(path, **options)
        path.unlink()
        return found

    monkeypatch.setattr(module, name, look_and_remove)
    reader = ShardReader(damaged, load_manifest(damaged))
    with pytest.raises(ShardError, match="No such file"):
        reader.locate(np.array([0]))


def test_all_missing_shards_are_named_at_once(damaged: Path) -> None:
    reader = reader_of(damaged)
    for name in ("00001", "00003"):
        shutil.rmtree(damaged / "shards" / name)
    with pytest.raises(ShardError, match=r"2 of 5 shards are missing \(00001, 00003\)"):
        reader.check_files()
    assert reader.read(0, keep)
    with pytest.raises(ShardError, match="00003"):
        reader.read(36 - 8, keep)


def test_a_shard_of_another_size_is_named_with_both_sizes(damaged: Path) -> None:
    path = damaged / "shards" / "00002" / DATA_FILE
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(ShardError, match=rf"00002/data\.mdb: {size + 1} bytes, .* says {size}: .*; run `lmdali verify"):
        reader_of(damaged).check_files()


def test_swapped_shards_give_errors_and_never_each_others_records(tmp_path: Path) -> None:
    directory = tiny_dataset(tmp_path / "d", 3, per_shard=10)
    reader = reader_of(directory)
    shards = directory / "shards"
    (shards / "00000").rename(shards / "x")
    (shards / "00001").rename(shards / "00000")
    (shards / "x").rename(shards / "00001")
    sizes = {info.file_bytes for info in reader.manifest.shards}
    assert len(sizes) == 1, "the point of this test is that sizes and counts agree"
    reader.check_files()
    for index in range(20):
        with pytest.raises(
            ShardError, match=r"its first key is 000000[01]0_x, expected 000000[01]0_\.\.\.: .*; run `lmdali v"
        ):
            reader.read(index, keep)
    assert reader.read(25, keep) == (b"record 25", 0)


# Damage.


def test_no_truncation_kills_the_process(damaged: Path) -> None:
    """In a process of its own: where the check fails, the kernel sends SIGBUS."""
    script = """
import sys
from pathlib import Path
from lmdali.pipeline.errors import ShardError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_walk import iterate_lmdb
directory = Path(sys.argv[1])
reader = ShardReader(directory, load_manifest(directory))
path = reader.data_file("00000")
whole = path.read_bytes()
refused = 0
lengths = {0, 1, 151, 152, *range(0, len(whole), 4096), *range(4095, len(whole), 4096), *range(7, len(whole), 997)}
for length in sorted(lengths):
    path.write_bytes(whole[:length])
    try:
        reader.read(0, lambda record: bytes(record.data))
    except ShardError:
        refused += 1
    try:
        list(iterate_lmdb(path.parent))
    except ShardError:
        refused += 1
assert refused == 2 * len(lengths), (refused, len(lengths))
path.write_bytes(whole)
reader.read(0, lambda record: bytes(record.data))
print("ok", len(lengths))
"""
    done = subprocess.run([sys.executable, "-c", script, damaged], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok")


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def test_a_flipped_bit_names_shard_record_and_key(damaged: Path) -> None:
    reader = reader_of(damaged)
    data, _ = reader.read(11, keep)
    number, _ = reader.index.locate(11)
    path = reader.data_file(reader.manifest.shards[number].name)
    reader.close()
    flip(path, path.read_bytes().index(data) + 50)
    key = read_rows(damaged / "records.parquet")[11]["key"]
    with pytest.raises(RecordError) as caught:
        reader.read(11, keep)
    message = str(caught.value)
    assert all(part in message for part in (str(path), "record 11,", key, "CRC-32C", f"lmdali verify {damaged}"))
    assert reader.read(11, keep, verify=False)[0] != data
    assert reader.read(10, keep)


def test_every_flip_in_the_image_bytes_is_found(damaged: Path) -> None:
    reader = reader_of(damaged)
    path = reader.data_file("00000")
    dice = random.Random(27)
    for _ in range(120):
        index = dice.randrange(reader.manifest.shards[0].num_records)
        data, _ = reader.read(index, keep)
        reader.close()
        offset, bit = path.read_bytes().index(data) + dice.randrange(len(data)), 1 << dice.randrange(8)
        flip(path, offset, bit)
        with pytest.raises(RecordError):
            reader.read(index, keep)
        reader.close()
        flip(path, offset, bit)
    assert everything(reader)


def test_a_record_without_a_checksum_does_not_pass_for_verified(tmp_path: Path) -> None:
    directory = tiny_dataset(tmp_path / "d", 1)
    reader = reader_of(directory)
    assert reader.read(1, keep) == (b"record 1", 0)
    value = pack_record(b"record 1", label=0, height=8, width=8)
    path = reader.data_file("00000")
    whole = path.read_bytes()
    at = whole.index(value)
    # Field 100 becomes field 101, which nobody knows.
    changed = value[:-6] + bytes([value[-6] + 8]) + value[-5:]
    reader.close()
    path.write_bytes(whole[:at] + changed + whole[at + len(value) :])
    with pytest.raises(RecordError, match="CRC-32C"):
        reader.read(1, keep)


# Many shards, threads, processes.


def test_no_number_of_shards_needs_open_files(tmp_path: Path) -> None:
    directory = tiny_dataset(tmp_path / "d", 100)
    script = """
import os, random, resource, sys
from pathlib import Path
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import ShardReader
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
directory = Path(sys.argv[1])
reader = ShardReader(directory, load_manifest(directory))
before = len(os.listdir("/proc/self/fd"))
indices = list(range(reader.manifest.num_records)) * 2
random.Random(0).shuffle(indices)
for index in indices:
    assert reader.read(index, lambda record: bytes(record.data)) == b"record %d" % index
assert len(os.listdir("/proc/self/fd")) == before
"""
    done = subprocess.run([sys.executable, "-c", script, directory], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def test_threads_map_shards_at_the_same_time(tmp_path: Path) -> None:
    reader = reader_of(tiny_dataset(tmp_path / "d", 10))
    wrong: list[object] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(300):
            index = dice.randrange(20)
            try:
                found = reader.read(index, keep)
            except Exception as error:
                found = error
            if found != (b"record %d" % index, 0):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_readers_share_a_dataset_and_one_may_leave(small_jpeg_dataset: Path) -> None:
    one, other = reader_of(small_jpeg_dataset), reader_of(small_jpeg_dataset)
    expected = everything(one)

    def read_through_the_other(record: Record) -> bytes:
        other.close()  # unmaps nothing that is being read
        assert other.read(0, keep) == expected[0]
        assert other.read(20, keep) == expected[20]
        return bytes(record.data)

    assert one.read(1, read_through_the_other) != b""
    one.close()
    assert everything(other) == expected
    assert everything(one) == expected


def test_memory_stays_mapped_while_it_is_looked_at(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    expected = reader.read(3, keep)
    view = reader.read(3, lambda record: record.data)
    located = reader.locate(np.array([3]))
    reader.close()
    del reader
    gc.collect()
    assert bytes(view) == expected[0]
    assert expected[0] in located.bytes[located.starts[0] : located.stops[0]].tobytes()


def test_what_is_mapped_is_read_on_when_its_dataset_is_replaced(
    small_jpeg_dataset: Path, small_raw_dataset: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_jpeg_dataset, tmp_path / "copy"))
    reader, expected = reader_of(copy), reader_of(small_jpeg_dataset)
    assert reader.read(0, keep) == expected.read(0, keep)
    shutil.rmtree(copy)
    assert reader.read(1, keep) == expected.read(1, keep), "of the shard that was mapped before"
    shutil.copytree(small_raw_dataset, copy)
    assert reader.read(2, keep) == expected.read(2, keep)
    with pytest.raises(ShardError, match="00004"):
        reader.read(36, keep)


def test_places_are_found_for_many_records_at_once(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    order = np.random.default_rng(3).permutation(37)
    located = reader.locate(order)
    for index, start, stop in zip(order, located.starts, located.stops, strict=True):
        record = parse_record(located.bytes[start:stop].tobytes())
        assert (bytes(record.data), record.label) == reader.read(int(index), keep)
    for wrong in ([0, 37], [-1, 0]):
        with pytest.raises(IndexError):
            reader.locate(np.array(wrong))
    assert len(reader.locate(np.empty(0, np.int64)).starts) == 0


@pytest.mark.parametrize("harm", ["missing", "garbage", "of another shard", "outside the file"])
def test_kept_offsets_that_do_not_fit_are_not_trusted(damaged: Path, harm: str) -> None:
    expected = everything(reader_of(damaged))
    path = damaged / "shards" / "00000" / OFFSETS_FILE
    if harm == "missing":
        path.unlink()
    elif harm == "garbage":
        path.write_bytes(b"\x93NUMPY no")
    elif harm == "of another shard":
        shutil.copy(damaged / "shards" / "00002" / OFFSETS_FILE, path)
    else:
        np.save(path, np.load(path) + 10**9)
    assert everything(reader_of(damaged)) == expected


def test_reading_inside_a_read_gives_both_records(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    expected = everything(reader)
    both = reader.read(0, lambda record: (reader.read(1, keep), keep(record)))
    assert both == (expected[1], expected[0])


def test_a_forked_child_reads_what_its_parent_has_open(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    expected = everything(reader)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:  # no pytest here: whatever happens must end in _exit
        try:
            os.write(send, b"1" if everything(reader) == expected else b"0")
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        assert answer.read() == b"1"
    os.waitpid(child, 0)
    assert everything(reader) == expected


def read_elsewhere(reader: ShardReader, index: int) -> Kept:
    return reader.read(index, keep)


def test_a_reader_travels_to_a_spawned_process(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    expected = reader.read(5, keep)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(5, keep) == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_elsewhere, (reader, 5)) == expected


def test_reading_writes_nothing(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    everything(reader)
    for directory in (small_jpeg_dataset / "shards").iterdir():
        assert sorted(path.name for path in directory.iterdir()) == [DATA_FILE, OFFSETS_FILE, "shard.json"]


# Whole LMDBs.


def test_iteration_gives_every_record_in_key_order_every_time(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    count = reader.manifest.shards[0].num_records
    expected = [reader.read(index, keep) for index in range(count)]
    directory = small_jpeg_dataset / "shards" / "00000"
    for _ in range(3):
        found = [(key, keep(record)) for key, record in iterate_lmdb(directory)]
        assert [kept for _, kept in found] == expected
        assert [key for key, _ in found] == sorted(key for key, _ in found)


def test_iteration_is_not_disturbed_by_reads_and_other_iterations(small_jpeg_dataset: Path) -> None:
    reader = reader_of(small_jpeg_dataset)
    count = reader.manifest.shards[0].num_records
    expected = [reader.read(index, keep) for index in range(count)]
    directory = small_jpeg_dataset / "shards" / "00000"
    pairs = []
    for (_, one), (_, other) in zip(iterate_lmdb(directory), iterate_lmdb(directory), strict=True):
        pairs.append((keep(one), keep(other)))
        reader.read(count - 1, keep)
        reader.close()
    assert pairs == [(kept, kept) for kept in expected]


def test_a_folder_without_an_lmdb_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=str(tmp_path)):
        list(iterate_lmdb(tmp_path))
