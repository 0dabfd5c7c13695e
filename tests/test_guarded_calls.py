from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

import pytest

from lmdali.pipeline.errors import InputError
from lmdali.tools.guarded_calls import CallDied, GuardedChild, guarded_call, guarded_map
from lmdali.tools.worker_limits import WorkerLimits


def work(kind: str, number: int) -> int:
    """What the children of these tests do."""
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "hang":
        time.sleep(60)
    if kind == "refuse":
        raise InputError(f"number {number} is refused")
    if kind == "memory":
        return len(bytearray(200_000_000))
    print("nobody wants to read this", file=sys.stderr)
    return number * number


def call(kind: str, number: int = 0) -> tuple[str, tuple[object, ...]]:
    return f"'file{number}'", (kind, number)


def test_results_come_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    found = guarded_map(work, [call("square", number) for number in range(9)], parser="the parser")
    assert list(found) == [number * number for number in range(9)]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("crash", r"'file1': crashed the parser \(SIGSEGV\)"),
        ("hang", r"'file1': the parser did not come back within 4 s"),
        ("refuse", "number 1 is refused"),
    ],
)
def test_whatever_a_child_does_is_an_error_of_one_line(kind: str, message: str) -> None:
    found = guarded_map(work, [call("square", 3), call(kind, 1)], parser="the parser", limits=WorkerLimits(seconds=4))
    assert next(found) == 9
    with pytest.raises(InputError, match=message):
        next(found)


def test_memory_is_limited() -> None:
    with pytest.raises(InputError, match="meta: the parser needs more than 150 MB"):
        guarded_call(work, "meta", "memory", 0, parser="the parser", limits=WorkerLimits(memory_mb=150))


def hang(begun: str) -> None:
    """What the child of the next test does."""
    Path(begun).touch()
    time.sleep(600)


class SlowJoin(SpawnProcess):
    """The consumer's thread hears of an end long after the thread that made the call."""

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if threading.current_thread() is threading.main_thread():
            time.sleep(1)


def test_an_interrupt_ends_the_calls_and_comes_out_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an AttributeError where the thread of a call had closed what its consumer was about to close."""
    monkeypatch.setattr(SpawnContext, "Process", SlowJoin)
    begun, main, before = tmp_path / "begun", threading.main_thread().ident, set(multiprocessing.active_children())

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        threading.Thread(target=interrupt, daemon=True).start()
        guarded_call(hang, "meta", str(begun), parser="the parser")
    assert set(multiprocessing.active_children()) <= before


def test_a_child_that_was_stopped_is_not_started_again() -> None:
    child = GuardedChild(WorkerLimits())
    assert child.call(work, "square", 3) == 9
    child.stop()
    for _ in range(2):
        with pytest.raises(CallDied) as caught:
            child.call(work, "square", 3)
        assert caught.value.exit_code == -signal.SIGKILL
    child.close()
