from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.errors import InputError, IntegrityError, StorageError
from lmdali.pipeline.files import (
    canonical_digest,
    disk_full,
    file_sha256,
    free_bytes,
    read_json,
    storage_errors,
    write_atomic,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failure_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"x\.json: Input/output error"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_what_is_free(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"x: the disk is full \(\d+ bytes free\): make room"),
        storage_errors(tmp_path / "x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "resume" in str(disk_full(tmp_path / "x"))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "x: Permission denied: change its permissions or its owner"),
        (errno.EIO, "x: Input/output error: the disk or the way to it fails: see the system's log"),
        (errno.EBUSY, "x: Device or resource busy"),
    ],
)
def test_what_the_system_says_comes_with_what_to_do_about_it(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(StorageError, match=f"{said}$"), storage_errors(tmp_path / "x"):
        raise OSError(number, os.strerror(number))


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        write_atomic(tmp_path / "no" / "x", b"")


@given(document=st.dictionaries(st.text(), JSON, max_size=5))
def test_json_comes_back_and_its_digest_ignores_key_order(tmp_path: Path, document: dict[str, object]) -> None:
    path = tmp_path / "x.json"
    write_json(path, document)
    assert read_json(path) == json.loads(json.dumps(document))
    assert canonical_digest(read_json(path)) == canonical_digest(dict(reversed(document.items())))


def test_names_that_are_no_utf8_survive_in_json_that_is(tmp_path: Path) -> None:
    document = {"names": ["\udcff\udc80.jpg", "ö", "\\udcff"]}
    write_json(tmp_path / "x.json", document)
    text = (tmp_path / "x.json").read_bytes().decode("utf-8")
    assert "ö" in text and "\\udcff" in text
    assert read_json(tmp_path / "x.json") == document
    assert canonical_digest(document) != canonical_digest({"names": ["\\udcff\\udc80.jpg", "ö", "\\udcff"]})


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_json_object_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match=r"x\.json: no such file"):
        read_json(path)
    for text in (b"", b"{", b"[1]", b"3", b"\xff", b"[" * 200_000):
        path.write_bytes(text)
        with pytest.raises(IntegrityError, match=r"x\.json"):
            read_json(path)
    with pytest.raises(StorageError, match="Is a directory"):
        read_json(tmp_path)


def test_the_canonical_digest_is_frozen() -> None:
    text = '{"a":[1,2.5,null,true],"ü":"é"}'
    assert canonical_digest({"ü": "é", "a": [1, 2.5, None, True]}) == hashlib.sha256(text.encode()).hexdigest()


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_free_room_is_known_for_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "a" / "b") - free_bytes(tmp_path)) < 100_000_000
