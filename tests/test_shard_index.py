from __future__ import annotations

import random
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.errors import ShardError
from lmdali.pipeline.shard_header import DATA_FILE, read_header
from lmdali.pipeline.shard_index import OFFSETS_FILE, load_offsets, save_offsets, value_offsets, walk_values


def write(directory: Path, items: dict[bytes, bytes], *, in_order: bool = True) -> bytes:
    """Bytes of an LMDB 0.9 file with these items."""
    keys = sorted(items)
    if not in_order:
        random.Random(5).shuffle(keys)
    version = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}
    with lmdb.open(str(directory), map_size=1 << 26, lock=False, **version) as environment:
        with environment.begin(write=True) as transaction:
            for key in keys:
                transaction.put(key, items[key])
        with environment.begin() as transaction:
            assert dict(transaction.cursor()) == items
    return (directory / DATA_FILE).read_bytes()


def walk(directory: Path, content: bytes) -> list[tuple[bytes, bytes]]:
    path = directory / DATA_FILE
    found = walk_values(memoryview(content), read_header(path), path)
    return [(bytes(key), content[offset : offset + size]) for key, offset, size in found]


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 50, 3000])
def test_the_walk_finds_what_lmdb_finds(tmp_path: Path, count: int, in_order: bool) -> None:
    dice = random.Random(count)
    sizes = [0, 1, 100, 1900, 2100, 4080, 4081, 9000]  # inside a page, and in pages of their own
    items = {b"%08d_%s" % (i, b"k" * dice.randrange(60)): dice.randbytes(dice.choice(sizes)) for i in range(count)}
    assert walk(tmp_path, write(tmp_path, items, in_order=in_order)) == sorted(items.items())


@given(st.dictionaries(st.binary(min_size=1, max_size=511), st.binary(max_size=6000), max_size=30))
def test_any_keys_and_values_are_found(tmp_path_factory: pytest.TempPathFactory, items: dict[bytes, bytes]) -> None:
    directory = tmp_path_factory.mktemp("lmdb")
    assert walk(directory, write(directory, items)) == sorted(items.items())


def test_a_damaged_tree_is_an_error_or_still_inside_the_file(tmp_path: Path) -> None:
    items = {b"%08d_x" % i: bytes(i % 3000) for i in range(400)}
    whole = write(tmp_path, items)
    header, path = read_header(tmp_path / DATA_FILE), tmp_path / DATA_FILE
    dice = random.Random(9)
    refused = 0
    for _ in range(1500):
        content = bytearray(whole)
        for _ in range(dice.choice([1, 1, 1, 20])):
            # Damage to page headers, node tables and nodes: the beginnings and ends of pages.
            page = dice.randrange(2, len(whole) // 4096)
            content[page * 4096 + dice.choice([dice.randrange(64), dice.randrange(4096)])] ^= 1 << dice.randrange(8)
        try:
            for _, offset, size in walk_values(memoryview(content), header, path):
                assert offset >= 0
                assert size >= 0
                assert offset + size <= len(content)
        except ShardError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50


def test_a_tree_in_circles_ends(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path, {b"%08d_x" % i: b"" for i in range(2000)}))
    path = tmp_path / DATA_FILE
    header = read_header(path)
    root = header.root_page * 4096
    node = root + int.from_bytes(whole[root + 16 : root + 18], "little")
    whole[node : node + 4] = header.root_page.to_bytes(4, "little")
    with pytest.raises(ShardError, match="circles"):
        list(walk_values(memoryview(whole), header, path))


def test_offsets_come_back_as_they_were_kept(tmp_path: Path) -> None:
    content = write(tmp_path, {b"%08d_x" % i: bytes(i) for i in range(100)})
    path = tmp_path / DATA_FILE
    offsets = value_offsets(memoryview(content), read_header(path), path)
    assert offsets.shape == (100, 2)
    save_offsets(tmp_path, offsets)
    kept = load_offsets(tmp_path, num_records=100, file_bytes=len(content))
    assert kept is not None
    assert np.array_equal(kept, offsets)
    assert load_offsets(tmp_path, num_records=99, file_bytes=len(content)) is None
    assert load_offsets(tmp_path, num_records=100, file_bytes=int(offsets.sum(axis=1).max()) - 1) is None
    (tmp_path / OFFSETS_FILE).write_bytes(b"")
    assert load_offsets(tmp_path, num_records=100, file_bytes=len(content)) is None
