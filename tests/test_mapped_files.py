from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from open_files import open_files

from lmdali.pipeline.mapped_files import MappedFiles


def files(directory: Path, sizes: list[int]) -> list[Path]:
    paths = [directory / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(os.urandom(size))
    return paths


def mapped_in(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def place(mapped: MappedFiles, number: int, path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    mapped.map(number, descriptor)
    os.close(descriptor)
    start = int(mapped.starts[number])
    return mapped.bytes[start : start + path.stat().st_size].tobytes()


def test_each_file_is_found_in_its_place(tmp_path: Path) -> None:
    sizes = [1, 4096, 0, 4097, 300_000]
    paths = files(tmp_path, sizes)
    mapped = MappedFiles(sizes)
    for number in (3, 0, 4, 2, 1):
        assert place(mapped, number, paths[number]) == paths[number].read_bytes()
    assert not mapped.bytes.flags.writeable
    mapped.will_need(5, len(mapped.bytes))


def test_no_descriptor_is_kept(tmp_path: Path) -> None:
    paths = files(tmp_path, [5000] * 20)
    mapped = MappedFiles([5000] * 20)
    for number, path in enumerate(paths):
        place(mapped, number, path)
    assert mapped_in(paths[0])
    assert not open_files(tmp_path)


def test_memory_goes_with_its_last_view(tmp_path: Path) -> None:
    (path,) = files(tmp_path, [9000])
    mapped = MappedFiles([9000])
    place(mapped, 0, path)
    view = mapped.bytes[100:200]
    del mapped
    gc.collect()
    assert mapped_in(path)
    assert view.tobytes() == path.read_bytes()[100:200]
    del view
    gc.collect()
    assert not mapped_in(path)


def test_terabytes_cost_addresses_only() -> None:
    assert len(MappedFiles([1 << 40] * 4).bytes) == 1 << 42


def test_what_cannot_be_mapped_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="memory"):
        MappedFiles([1 << 60])
    mapped = MappedFiles([10])
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match=r".+"):
        mapped.map(0, descriptor)
    os.close(descriptor)
