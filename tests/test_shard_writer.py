"""Shards: writing, and the header that is read before anything is mapped."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from lmdali.pipeline.errors import IntegrityError, ShardError, StorageError
from lmdali.pipeline.files import file_sha256
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.records import parse_record
from lmdali.pipeline.shard_figures import SHARD_FILE, shard_from_json, shard_to_json
from lmdali.pipeline.shard_header import DATA_FILE, LmdbHeader, check_size, read_header
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_writer import ShardWriter

BIG = os.urandom(9000)


def write(directory: Path, name: str = "00003", *, skip: frozenset[int] = frozenset({12}), count: int = 6) -> ShardInfo:
    directory.mkdir(exist_ok=True)
    with ShardWriter(directory, name, first_position=10, num_sources=count, image_size=32) as shard:
        for position in range(10, 10 + count):
            if position not in skip:
                data = BIG if position == 13 else b"image %d" % position
                shard.put(position, f"c/{position}.jpg", data, label=position - 10, height=32, width=32)
        return shard.publish({"plan": "abc"})


def content(directory: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(directory), readonly=True, lock=False, create=False) as environment, environment.begin() as txn:
        return dict(txn.cursor())


def test_a_shard_is_a_plain_lmdb_of_caffe_datums(tmp_path: Path) -> None:
    info = write(tmp_path / "shards")
    stored = content(tmp_path / "shards" / "00003")
    assert list(stored) == [b"000000%d_c/%d.jpg" % (p, p) for p in (10, 11, 13, 14, 15)]
    assert bytes(parse_record(stored[b"00000013_c/13.jpg"]).data) == BIG
    assert parse_record(stored[b"00000010_c/10.jpg"]).label == 0
    path = tmp_path / "shards" / "00003" / DATA_FILE
    assert info == ShardInfo(
        name="00003",
        num_records=5,
        first_position=10,
        num_sources=6,
        rejected=(12,),
        file_bytes=path.stat().st_size,
        payload_bytes=9000 + 4 * 8,
        sha256=file_sha256(path),
    )


def test_the_shard_has_its_figures_beside_it_and_no_lock_file(tmp_path: Path) -> None:
    info = write(tmp_path / "shards")
    directory = tmp_path / "shards" / "00003"
    assert sorted(path.name for path in directory.iterdir()) == [DATA_FILE, OFFSETS_FILE, SHARD_FILE]
    document = json.loads((directory / SHARD_FILE).read_text())
    assert document["plan"] == "abc"
    assert shard_from_json(document["shard"]) == info == shard_from_json(shard_to_json(info))


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    infos = [write(tmp_path / name) for name in ("one", "two")]
    assert infos[0] == infos[1]


def test_the_file_is_in_the_0_9_format_and_not_preallocated(tmp_path: Path) -> None:
    info = write(tmp_path / "shards")
    path = tmp_path / "shards" / "00003" / DATA_FILE
    header = read_header(path)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    assert header == LmdbHeader(1, page_bytes, 5, header.root_page, info.file_bytes)
    assert info.file_bytes < 100_000
    assert path.stat().st_blocks * 512 <= info.file_bytes + page_bytes


def test_a_shard_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "shards"
    with (
        pytest.raises(KeyError),
        ShardWriter(directory, "00000", first_position=0, num_sources=2, image_size=32) as shard,
    ):
        shard.put(0, "a", b"x", label=0, height=1, width=1)
        raise KeyError
    assert list(directory.iterdir()) == []


def test_a_published_shard_is_never_replaced(tmp_path: Path) -> None:
    before = write(tmp_path / "shards")
    with pytest.raises(StorageError, match="00003"):
        write(tmp_path / "shards", skip=frozenset())
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00003"]
    assert file_sha256(tmp_path / "shards" / "00003" / DATA_FILE) == before.sha256


def test_a_shard_of_nothing_but_rejects_is_a_shard(tmp_path: Path) -> None:
    info = write(tmp_path / "shards", skip=frozenset(range(100)))
    assert (info.num_records, info.rejected, info.payload_bytes) == (0, (10, 11, 12, 13, 14, 15), 0)
    assert read_header(tmp_path / "shards" / "00003" / DATA_FILE).num_entries == 0


def test_records_of_noise_at_quality_100_find_room(tmp_path: Path) -> None:
    noise = os.urandom(2 * 32 * 32 * 3)
    with ShardWriter(tmp_path / "s", "00000", first_position=0, num_sources=2000, image_size=32) as shard:
        for position in range(2000):
            shard.put(position, "a", noise, label=0, height=32, width=32)
        assert shard.publish({}).num_records == 2000


def test_positions_must_ascend(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", "00000", first_position=0, num_sources=2, image_size=32) as shard:
        shard.put(1, "a", b"x", label=0, height=1, width=1)
        with pytest.raises((StorageError, IntegrityError)):
            shard.put(0, "a", b"x", label=0, height=1, width=1)
            shard.publish({})


newer_engine = pytest.mark.skipif(
    int(lmdb.__version__.partition(".")[0]) < 3, reason=f"lmdb {lmdb.__version__} has the older engine alone"
)


@newer_engine
def test_an_engine_that_writes_another_format_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.pipeline.shard_writer._FORMAT_0_9", {"lib_version": 1})
    with pytest.raises(IntegrityError, match="file format 3, only format 1"):
        write(tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


# The header.


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    write(tmp_path / "shards")
    return tmp_path / "shards" / "00003" / DATA_FILE


def test_a_sound_file_passes_with_and_without_a_manifest(data_file: Path) -> None:
    size = data_file.stat().st_size
    assert check_size(data_file, expected_bytes=None, expected_entries=None).num_entries == 5
    assert check_size(data_file, expected_bytes=size, expected_entries=5).needed_bytes == size


def test_every_truncation_is_refused(data_file: Path) -> None:
    whole = data_file.read_bytes()
    for length in [*range(0, len(whole), 211), 4096, 8192, len(whole) - 4096, len(whole) - 1]:
        data_file.write_bytes(whole[:length])
        with pytest.raises(ShardError, match=str(data_file)):
            check_size(data_file, expected_bytes=None, expected_entries=None)


def test_another_size_or_count_than_the_manifests_is_refused(data_file: Path) -> None:
    size = data_file.stat().st_size
    with pytest.raises(ShardError, match=f"{size} bytes, manifest.json says {size + 4096}"):
        check_size(data_file, expected_bytes=size + 4096, expected_entries=5)
    with pytest.raises(ShardError, match=r"5 records, manifest\.json says 6"):
        check_size(data_file, expected_bytes=size, expected_entries=6)
    with data_file.open("ab") as file:
        file.write(bytes(4096))
    with pytest.raises(ShardError, match="damaged or replaced"):
        check_size(data_file, expected_bytes=size, expected_entries=5)


def zeroed(whole: bytearray) -> None:
    whole[:] = bytes(len(whole))


def put(offset: int, kind: str, value: int) -> Callable[[bytearray], None]:
    return lambda whole: struct.pack_into(kind, whole, offset, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (zeroed, "no LMDB header"),
        (put(16, "<I", 0xBEEFC0DF), "1 of 2 LMDB meta pages"),
        (put(4096 + 16, "<I", 0), "1 of 2 LMDB meta pages"),
        (put(40, "<I", 4095), "no LMDB header"),
        (put(40, "<I", 0), "no LMDB header"),
        (put(40, "<I", 2**31), "no LMDB header"),
        (put(40, "<I", 8192), "meta pages are readable"),
        (put(20, "<I", 2), "file format 2, only format 1"),
        (put(4096 + 136, "<Q", 2**40), "its header needs"),
        (put(144, "<Q", 99), "0 records, manifest.json says 5|its header needs|file format"),
    ],
)
def test_a_damaged_header_is_refused(data_file: Path, damage: Callable[[bytearray], None], message: str) -> None:
    whole = bytearray(data_file.read_bytes())
    if "format 2" in message:  # the newer page decides, so both are changed
        put(4096 + 20, "<I", 2)(whole)
    damage(whole)
    data_file.write_bytes(whole)
    with pytest.raises(ShardError, match=message):
        check_size(data_file, expected_bytes=len(whole), expected_entries=5)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ShardError, match=str(path)):
            read_header(path)


@newer_engine
def test_a_file_of_the_newer_engine_is_refused_in_words(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lib_version": 1}
    with lmdb.open(str(tmp_path / "new"), **options) as environment, environment.begin(write=True) as txn:
        txn.put(b"a", b"b")
    with pytest.raises(ShardError, match="file format 3, only format 1"):
        check_size(tmp_path / "new" / DATA_FILE, expected_bytes=None, expected_entries=None)


def test_the_folder_may_be_copied_and_moved(tmp_path: Path) -> None:
    info = write(tmp_path / "shards")
    shutil.copytree(tmp_path / "shards" / "00003", tmp_path / "elsewhere")
    assert file_sha256(tmp_path / "elsewhere" / DATA_FILE) == info.sha256
    assert len(content(tmp_path / "elsewhere")) == 5
