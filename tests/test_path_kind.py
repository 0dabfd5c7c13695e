"""What is at a path, and that what cannot be told is an error, on every Python."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lmdali.pipeline.path_kind import exists, is_dir, is_file


def kinds(path: Path) -> tuple[bool, bool, bool]:
    return exists(path), is_file(path), is_dir(path)


def test_links_are_followed_and_what_is_absent_is_nothing(tmp_path: Path) -> None:
    file, link, circle = tmp_path / "file", tmp_path / "link", tmp_path / "circle"
    file.touch()
    link.symlink_to(tmp_path)
    circle.symlink_to(circle)
    assert kinds(file) == (True, True, False)
    assert kinds(tmp_path) == kinds(link) == (True, False, True)
    os.mkfifo(tmp_path / "pipe")
    assert kinds(tmp_path / "pipe") == (True, False, False)
    for nothing in (tmp_path / "none", file / "below", circle, Path("zero\0byte")):
        assert kinds(nothing) == (False, False, False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("question", [exists, is_file, is_dir])
def test_what_cannot_be_told_is_an_error(question: object, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> os.stat_result:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(OSError, match="somewhere"):
        question(Path("somewhere"))  # type: ignore[operator]


def test_a_name_that_is_too_long_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        is_dir(tmp_path / ("x" * 300))
