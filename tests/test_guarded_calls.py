from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from lmdali.pipeline.errors import InputError
from lmdali.tools.guarded_calls import guarded_call, guarded_map
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
