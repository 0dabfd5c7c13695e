"""Reading byte ranges of files: what fails for an image, and what has to fail for the whole run."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_files import open_files

from lmdali.pipeline.errors import InputError, StorageError
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.tools.range_reader import RangeReader, open_regular, read_range
from lmdali.tools.source_entries import SourceEntry


def entry(offset: int, num_bytes: int, file: int = 0) -> SourceEntry:
    return SourceEntry("a.jpg", 0, file, offset, num_bytes)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "deep").mkdir()
    paths = [tmp_path / "one.tar", tmp_path / "deep" / "two\udcff.tar"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes((number * 100 + n) % 256 for n in range(256)))
    return paths


def test_ranges_of_several_files_are_read_in_any_process(files: list[Path]) -> None:
    reader = pickle.loads(pickle.dumps(RangeReader.over(files)))
    assert reader.read(entry(5, 3)) == bytes([5, 6, 7])
    assert reader.read(entry(0, 256, 1)) == files[1].read_bytes()
    assert reader.read(entry(256, 0)) == b""


def test_the_reader_is_small_for_a_thousand_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"n{number:08d}.tar" for number in range(1000)]
    for path in paths:
        path.write_bytes(b"x")
    reader = RangeReader.over(paths)
    assert len(pickle.dumps(reader)) < 50_000
    assert all(reader.read(entry(0, 1, number)) == b"x" for number in range(1000))
    assert not open_files(tmp_path)


def test_where_it_was_made_does_not_matter(files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    reader = RangeReader.over([Path("one.tar")])
    monkeypatch.chdir("/")
    assert reader.read(entry(1, 1)) == b"\x01"


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 50))
def test_short_reads_are_put_together(offset: int, num_bytes: int, most: int) -> None:
    content = bytes(n % 251 for n in range(256))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "pread", lambda _, size, start: content[start : start + min(size, most)])
        assert read_range(0, offset, num_bytes) == content[offset : offset + num_bytes]


def test_a_large_range_is_a_reject_and_not_read(files: list[Path]) -> None:
    reader = RangeReader.over(files)
    with pytest.raises(SourceRejected, match="3000000000 bytes are more than the limit") as caught:
        reader.read(entry(0, 3_000_000_000))
    assert caught.value.reason == Rejection.TOO_MANY_BYTES


def test_a_range_beyond_the_end_is_a_reject(files: list[Path]) -> None:
    with pytest.raises(SourceRejected, match="6 of 20 bytes from byte 250") as caught:
        RangeReader.over(files).read(entry(250, 20))
    assert caught.value.reason == Rejection.READ_FAILED


def test_a_bad_place_on_the_disk_is_a_reject(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = RangeReader.over(files)

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(SourceRejected, match="Input/output error") as caught:
        reader.read(entry(0, 4))
    assert caught.value.reason == Rejection.READ_FAILED


def run_ends(reader: RangeReader, kind: type[Exception], message: str) -> None:
    """The error is none of a single image's."""
    with pytest.raises(kind, match=message) as caught:
        reader.read(entry(0, 4))
    assert not isinstance(caught.value, SourceRejected)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "it comes out of a worker as it is"


def test_a_file_that_changed_or_went_ends_the_run(files: list[Path]) -> None:
    reader = RangeReader.over(files)
    status = files[0].stat()
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    run_ends(reader, InputError, "changed after it was scanned.*modification time differs")
    files[0].write_bytes(b"short")
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    run_ends(reader, InputError, r"changed after it was scanned \(then 256 bytes, now 5")
    files[0].unlink()
    run_ends(reader, InputError, "cannot be opened.*No such file")
    files[0].mkdir()
    run_ends(reader, InputError, "no regular file")


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, InputError), (errno.EIO, StorageError), (errno.ESTALE, StorageError), (errno.EMFILE, StorageError)],
)
def test_a_file_that_cannot_be_opened_ends_the_run(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    reader = RangeReader.over(files)

    def failing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", failing)
    run_ends(reader, kind, os.strerror(number))


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for_and_nothing_stays_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        open_regular(str(tmp_path / "pipe"))
    with pytest.raises(InputError, match="No such file"):
        RangeReader.over([tmp_path / "nowhere"])
    assert not open_files(tmp_path)
