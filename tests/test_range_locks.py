"""Locks on bytes of a file: between objects, between processes, and within one object."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lmdali.pipeline.errors import MachineError
from lmdali.pipeline.range_locks import RangeLocks, lock_byte


def test_shared_with_shared_and_exclusive_with_nobody(tmp_path: Path) -> None:
    a, b, c = (RangeLocks(tmp_path / "lock") for _ in range(3))
    assert a.shared(5) and b.shared(5)
    assert not c.exclusive(5) and not a.exclusive(5), "b reads"
    assert c.exclusive(6)
    b.release(5)
    assert a.exclusive(5), "its own shared lock does not stand in its way"
    assert not b.shared(5)
    assert a.shared(5) and b.shared(5), "it was made a shared one"
    a.close()
    b.close()
    assert c.exclusive(5)


def test_the_locks_of_a_killed_process_are_gone(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from lmdali.pipeline.range_locks import RangeLocks
locks = RangeLocks(Path({str(tmp_path / "lock")!r}))
assert locks.exclusive(5) and locks.exclusive(7)
print("held", flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        locks = RangeLocks(tmp_path / "lock")
        assert not locks.shared(5)
        process.kill()
    assert locks.shared(5) and locks.exclusive(7)


def test_one_at_a_time_is_behind_the_gate(tmp_path: Path) -> None:
    both = [RangeLocks(tmp_path / "lock") for _ in range(2)]
    count = 0

    def work(locks: RangeLocks) -> None:
        nonlocal count
        for _ in range(200):
            with locks.gate():
                seen = count
                threading.Event().wait(0)
                count = seen + 1

    threads = [threading.Thread(target=work, args=(locks,)) for locks in both * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 800


def test_hashes_have_bytes_of_their_own_below_the_gate() -> None:
    assert lock_byte("f" * 64) < 1 << 62
    assert lock_byte("0" * 15 + "f" * 49) == 0
    assert lock_byte("0" * 14 + "1" + "0" * 49) == 1


def test_a_system_without_such_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    with pytest.raises(MachineError, match="Linux"):
        RangeLocks(tmp_path / "lock")
