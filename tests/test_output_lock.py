"""One whole run, or several parts of one division: whoever comes second is told who was first."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from lmdali.pipeline import output_lock
from lmdali.pipeline.dataset_plan import Part
from lmdali.pipeline.errors import LockedError, StorageError
from lmdali.pipeline.output_lock import hold_part, hold_plan, hold_whole, parts_seen

ME = rf"pid {os.getpid()} on "


def test_parts_work_side_by_side_and_nobody_else(tmp_path: Path) -> None:
    with hold_part(tmp_path, Part(1, 3)), hold_part(tmp_path, Part(3, 3)):
        with pytest.raises(LockedError, match=rf"making part 3/3 here \({ME}"), hold_part(tmp_path, Part(3, 3)):
            raise AssertionError
        with pytest.raises(LockedError, match=rf"\(part 1/3: {ME}.*, part 3/3: {ME}"), hold_whole(tmp_path):
            raise AssertionError
        with hold_part(tmp_path, Part(2, 3)):
            pass
    assert parts_seen(tmp_path) == [Part(1, 3), Part(2, 3), Part(3, 3)]
    with hold_whole(tmp_path):
        with pytest.raises(LockedError, match=rf"another run is writing here \({ME}"), hold_part(tmp_path, Part(1, 3)):
            raise AssertionError
        with pytest.raises(LockedError, match=rf"another run is writing here \({ME}"), hold_whole(tmp_path):
            raise AssertionError


def test_parts_of_another_division_would_do_the_same_shards(tmp_path: Path) -> None:
    with hold_part(tmp_path, Part(1, 3)):
        overlap = "part 1/3 is being made here, and its shards overlap with those of part 2/4"
        with pytest.raises(LockedError, match=overlap), hold_part(tmp_path, Part(2, 4)):
            raise AssertionError
        with hold_part(tmp_path, Part(2, 3)):
            pass
    with hold_part(tmp_path, Part(2, 4)):
        pass


def test_more_parts_than_can_be_named_are_counted(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number in range(1, 8):
            stack.enter_context(hold_part(tmp_path, Part(number, 7)))
        with pytest.raises(LockedError, match=r"part 4/7: .* and 3 more parts"), hold_whole(tmp_path):
            raise AssertionError


def test_a_lock_file_that_was_removed_meanwhile_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever publishes removes `.staging/`: one that opened its lock before and gets it after must open it again."""
    locked = output_lock.fcntl.flock
    removed = []

    def flock(file: object, how: int) -> None:
        if not removed:
            removed.append(True)
            shutil.rmtree(tmp_path / ".staging")
        locked(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(output_lock.fcntl, "flock", flock)
    with hold_whole(tmp_path):
        assert (tmp_path / ".staging/lock").read_text().startswith("pid ")
        with pytest.raises(LockedError), hold_whole(tmp_path):
            raise AssertionError


def test_a_lock_that_goes_while_it_is_looked_at_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is done removes `.staging/`: where others open what is in there, and where they begin anew in it."""
    staging, opened = tmp_path / ".staging", Path.open
    going = {"part-00001-of-00003.lock"}

    def open_later(path: Path, *args: object) -> object:
        if path.name in going:
            going.remove(path.name)
            shutil.rmtree(staging, ignore_errors=True)
        return opened(path, *args)  # type: ignore[call-overload]

    with hold_part(tmp_path, Part(1, 3)):
        pass
    monkeypatch.setattr(Path, "open", open_later)
    with hold_part(tmp_path, Part(2, 4)):  # part 1/3 was begun here: is it running?
        assert not going
    going.add("lock")
    with hold_whole(tmp_path, writable=False):
        assert not staging.exists()
    going.add("lock")
    with hold_whole(tmp_path):
        assert (staging / "lock").exists()


def test_a_link_to_nowhere_in_place_of_the_locks_is_no_race(tmp_path: Path) -> None:
    (tmp_path / ".staging").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="File exists"), hold_whole(tmp_path):
        raise AssertionError


def test_a_directory_that_is_only_read_is_not_written_to(tmp_path: Path) -> None:
    with hold_whole(tmp_path, writable=False):
        assert not list(tmp_path.iterdir())
    with hold_part(tmp_path, Part(1, 1)), pytest.raises(LockedError), hold_whole(tmp_path, writable=False):
        raise AssertionError
    before = (tmp_path / ".staging/lock").read_text()
    with hold_whole(tmp_path, writable=False):
        assert (tmp_path / ".staging/lock").read_text() == before


def test_the_plan_is_looked_at_by_one_at_a_time(tmp_path: Path) -> None:
    with hold_plan(tmp_path):
        assert output_lock._take(tmp_path, "plan.lock", output_lock.fcntl.LOCK_EX) is None
    with hold_plan(tmp_path):
        pass
