"""Outputs that no run could use are refused before the source is looked at: here the source does not even exist."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from lmdali.pipeline.dataset_plan import Part
from lmdali.pipeline.errors import InputError, LockedError, StorageError
from lmdali.pipeline.output_check import check_output, is_leftover
from lmdali.pipeline.output_lock import hold_part, hold_whole


def check(directory: Path, *, is_part: bool = False, resume: bool = False, overwrite: bool = False) -> None:
    check_output(directory, is_part=is_part, resume=resume, overwrite=overwrite)


def failing(number: int) -> Any:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    (tmp_path / "finished" / "shards").mkdir(parents=True)
    (tmp_path / "finished" / "manifest.json").write_text("{}")
    return tmp_path / "finished"


def test_a_good_output_is_left_as_it_was(tmp_path: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    check(tmp_path / "new" / "and" / "deep")
    check(finished, overwrite=True)
    check(finished, resume=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_name_that_lmdb_cannot_open_is_refused_before_the_scan(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"out\xff")
    with pytest.raises(InputError, match=r"out.udcff': shards cannot be made at a path that is not UTF-8"):
        check(place)
    assert run("convert", tmp_path / "nowhere", place) == 3
    assert not place.exists()


def test_an_empty_output_is_not_the_current_directory(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a variable that is not set gives."""
    monkeypatch.chdir(finished)
    assert run("convert", tmp_path / "nowhere", "", "--overwrite") == 2
    assert "an empty path names no place" in capsys.readouterr().err


def test_an_output_in_its_source_or_a_source_in_its_output_is_refused(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Overwriting would remove the source; and a folder of classes would have one more on the next run."""
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(finished)
    shard = finished / "shards"
    for source, out in (
        (finished, finished),
        (finished, tmp_path / "link"),
        (shard, finished),
        (finished, shard / "o"),
    ):
        for flags in ([], ["--overwrite"], ["--resume"], ["--part", "1/2"], ["--dry-run"]):
            assert run("convert", source, out, *flags) == 2
            assert "and its output lie within each other" in capsys.readouterr().err
    assert run("convert", finished, "memory://out", "--scratch", finished / "scratch") == 2
    assert "lie within each other" in capsys.readouterr().err
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied"), (errno.ENOSPC, "the disk is full")],
)
def test_a_place_that_takes_no_file_is_a_storage_error(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(number))
    for options in ({}, {"is_part": True}, {"resume": True}):
        with pytest.raises(StorageError, match=f"{tmp_path / 'out'}: {words}"):
            check(tmp_path / "out", **options)
    with pytest.raises(StorageError, match=words):
        check(finished, overwrite=True)
    check(finished, resume=True)  # there is nothing to do, which a read-only disk allows


def test_a_disk_without_a_block_is_full_unless_the_run_makes_room(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(StorageError, match="the disk is full"):
        check(tmp_path / "out")
    check(finished, overwrite=True)


def test_a_parent_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(StorageError, match=f"cannot be made, because {tmp_path / name} is no directory"):
            check(tmp_path / name / "below" / "out")
    with pytest.raises(InputError, match="exists and is not a directory"):
        check(tmp_path / "file")
    with pytest.raises(StorageError, match="is no directory"):
        check(tmp_path / "dangling")


def test_content_needs_a_flag_and_what_is_not_ours_is_refused_with_any(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(InputError, match="already holds a finished dataset: add --resume or --overwrite"):
        check(finished)
    (finished / "manifest.json").unlink()
    with pytest.raises(InputError, match="already holds an unfinished conversion"):
        check(finished)
    check(finished, is_part=True)  # other parts may have begun: what this one has done, its plan says
    (finished / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="no part may take apart"):
        check(finished, is_part=True, overwrite=True)
    (finished / "thesis.tex").write_text("years of work")
    for options in ({}, {"resume": True}, {"overwrite": True}, {"is_part": True}):
        with pytest.raises(InputError, match=r"not ours \('thesis\.tex'\)"):
            check(finished, **options)


def test_who_is_writing_there_is_said_at_once(tmp_path: Path) -> None:
    with hold_whole(tmp_path / "out"), pytest.raises(LockedError, match=f"pid {os.getpid()} on "):
        check(tmp_path / "out")
    with hold_part(tmp_path / "parts", Part(1, 2)):
        check(tmp_path / "parts", is_part=True)


def test_what_the_probe_would_leave_on_an_old_disk_is_cleared_away_like_any_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no files without a name, one has a name for a moment, in which a run may be killed."""
    names = []

    def recorded(**options: Any) -> Any:
        file = tempfile.NamedTemporaryFile(**options)  # noqa: SIM115
        names.append(Path(file.name).name)
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", recorded)
    check(tmp_path)
    assert len(names) == 1 and is_leftover(names[0]) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"], ["--part", "1/2"]])
def test_the_command_refuses_before_it_looks_at_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(errno.EROFS))
    assert run("convert", tmp_path / "no-source", tmp_path / "out", *options) == 4
    refused = f"{tmp_path / 'out'}: Read-only file system: choose a place that can be written"
    assert capsys.readouterr().err == f"lmdali: StorageError: {refused}\n"
    assert run("convert", tmp_path / "no-source", tmp_path / "out", "--dry-run") == 3, "which writes nothing"


def test_real_disks_that_are_read_only_or_full_are_refused_before_the_scan(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        assert os.environ.get("CI") != "true", "unshare must work where CI=true: these disks have to be tested there"
        pytest.skip("LOUD: no user namespaces here, so read-only and full disks were NOT tested")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
mount -t tmpfs -o size=64k none {disk} && mkdir {disk}/old && echo '{{}}' > {disk}/old/manifest.json || exit 98
head -c 100000 /dev/zero > {disk}/filler 2>/dev/null
"$@" {disk}/out; echo $?
mount -o remount,ro {disk} || exit 97
"$@" {disk}/out; echo $?
"$@" {disk}/old --overwrite; echo $?
"""
    command = [sys.executable, "-m", "lmdali.tools", "convert", tmp_path / "no-source"]
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", *map(str, command)], capture_output=True, text=True, timeout=250
    )
    assert done.stdout.split() == ["4", "4", "4"], done
    full, *read_only = done.stderr.splitlines()
    assert full.startswith(f"lmdali: StorageError: {disk}/out: the disk is full (0 bytes free)")
    assert [line.split(": ", 2)[2] for line in read_only] == [
        f"{disk}/out: Read-only file system: choose a place that can be written",
        f"{disk}/old: Read-only file system: choose a place that can be written",
    ]
