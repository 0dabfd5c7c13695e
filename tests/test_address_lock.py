"""One writer per address: the second is refused, a dead one's lock is taken over, and nobody loses it unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from lmdali.pipeline import address_lock
from lmdali.pipeline.address_lock import WHOLE_LOCK, hold_address
from lmdali.pipeline.errors import LockedError, MachineError
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.s3_store import S3Store
from lmdali.pipeline.stores import open_writable_store


@pytest.fixture
def store(s3: S3Server, request: pytest.FixtureRequest) -> S3Store:
    return S3Store(f"s3://bucket/{request.node.name}", RetryConfig(tries=2, first_pause_seconds=0.01))


def holder(store: S3Store) -> dict[str, Any]:
    found = store.claimed(WHOLE_LOCK)
    assert found is not None
    document: dict[str, Any] = json.loads(found.data)
    return document


def waited(condition: Callable[[], bool]) -> bool:
    pause = threading.Event()
    return any(condition() or pause.wait(0.02) for _ in range(1500))


def test_the_second_is_told_who_is_first_and_the_lock_goes_with_its_holder(store: S3Store) -> None:
    with hold_address(store) as still_held:
        with pytest.raises(LockedError, match=rf"pid {os.getpid()} on .*: wait for it or stop it"), hold_address(store):
            raise AssertionError
        with hold_address(store, ".staging/part"):
            still_held()
    assert store.claimed(WHOLE_LOCK) is None and store.claimed(".staging/part") is None
    with hold_address(store):
        pass


def test_a_lock_that_no_thread_could_keep_fresh_is_given_back(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise MachineError("the system refuses another thread")

    monkeypatch.setattr(address_lock, "start_thread", refused)
    with pytest.raises(MachineError, match="refuses another thread"), hold_address(store):
        raise AssertionError
    assert store.claimed(WHOLE_LOCK) is None


def test_the_lock_of_a_process_that_is_gone_is_taken_over(store: S3Store) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        content = {"host": "here", **address_lock._process(process.pid)}
        store.put(WHOLE_LOCK, json.dumps(content).encode())
        with pytest.raises(LockedError, match=f"pid {process.pid} on here"), hold_address(store):
            raise AssertionError
        process.kill()
    with hold_address(store):
        assert holder(store)["pid"] == os.getpid()


def test_the_lock_of_another_users_process_that_cannot_be_seen_is_left_alone(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /proc hides the processes of others, as on machines that many log in to: it is not gone for that."""
    seen = address_lock._process

    def hidden(pid: int) -> dict[str, Any]:
        return seen(pid) if pid == os.getpid() else {"pid": pid, "machine": "", "begun": ""}

    def refused(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    store.put(WHOLE_LOCK, json.dumps({"host": "here", **seen(os.getppid())}).encode())
    monkeypatch.setattr(address_lock, "_process", hidden)
    monkeypatch.setattr(address_lock.os, "kill", refused)
    with pytest.raises(LockedError, match=f"pid {os.getppid()} on here"), hold_address(store):
        raise AssertionError
    with hold_address(store, stale_seconds=-1):  # it is old enough
        pass


@pytest.mark.parametrize("content", [{"host": "afar", "pid": 1, "machine": "another", "begun": "1"}, "nonsense"])
def test_a_lock_of_elsewhere_is_left_alone_until_it_is_old(store: S3Store, content: object) -> None:
    store.put(WHOLE_LOCK, json.dumps(content).encode())
    with pytest.raises(LockedError, match="forgotten after 150 s"), hold_address(store):
        raise AssertionError
    with hold_address(store, stale_seconds=-1):
        assert holder(store)["pid"] == os.getpid()


def test_a_holder_writes_it_again_and_again_and_notices_when_it_is_lost(store: S3Store) -> None:
    with hold_address(store, refresh_seconds=0.01) as still_held:
        assert waited(lambda: holder(store)["writes"] > 2)
        still_held()

        def is_lost() -> bool:
            # Again, should it be needed: moto compares and writes in two steps, and this may come between a holder's.
            store.put(WHOLE_LOCK, b"{}")
            try:
                still_held()
            except LockedError as error:
                return "another run took over" in str(error)
            return False

        assert waited(is_lost)
    found = store.claimed(WHOLE_LOCK)
    assert found is not None and found.data == b"{}", "another's lock is not removed"


def test_a_holder_that_could_not_write_for_long_asks_before_it_goes_on(store: S3Store) -> None:
    """Its own next write may be far away: what is asked for now must not rely on what was true long ago."""
    other = b'{"token": "another"}'
    with hold_address(store, refresh_seconds=1000, stale_seconds=0) as still_held:
        still_held()
        assert holder(store)["writes"] == 2
        store.put(WHOLE_LOCK, other)
        with pytest.raises(LockedError, match="another run took over"):
            still_held()
    with hold_address(store, refresh_seconds=1000, stale_seconds=-1):
        store.put(WHOLE_LOCK, other)
    found = store.claimed(WHOLE_LOCK)
    assert found is not None and found.data == other, "another's lock is not removed by one who has not heard of it"


def test_a_lock_of_which_the_answer_was_lost_is_known_as_ours(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store.create
    monkeypatch.setattr(store, "create", lambda *given: create(*given) and None)
    with hold_address(store):
        assert holder(store)["pid"] == os.getpid()
    assert store.claimed(WHOLE_LOCK) is None


def test_a_folder_has_the_lock_of_every_output_and_others_have_none(tmp_path: Path) -> None:
    folder = open_writable_store(f"file://{tmp_path}/out")
    with hold_address(folder), pytest.raises(LockedError), hold_address(folder):
        raise AssertionError
    assert not (tmp_path / "out" / ".staging").exists()
    memory = open_writable_store("memory://bucket/out")
    with hold_address(memory) as one, hold_address(memory):
        one()
