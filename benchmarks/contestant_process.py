"""The outside of a contestant's own process: start it in a session of its own, wait for its answer, end all of it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

from contestant_run import RESULT_FILE
from peers import Contestant
from peers.task import Task

_GRACE_SECONDS = 1.0
_PROGRAM = Path(__file__).with_name("contestant_run.py")


def ask(mode: str, contestant: Contestant, task: Task, *arguments: str, timeout_seconds: float) -> dict[str, Any]:
    """Run one command in a fresh process.

    Returns:
        Its answer; {"error": reason} where it fails, crashes or takes too long.
    """
    scratch = Path(task.folder).parent
    result, log = scratch / "result.json", scratch / "log.txt"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(_PROGRAM), mode, contestant.key, task.to_json(), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {RESULT_FILE: str(result)},
        )
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer within {timeout_seconds:.0f} s"}
        finally:
            _end(process)
    if result.is_file():
        answer: dict[str, Any] = json.loads(result.read_text())
        return answer
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return {"error": f"ended with code {code}: {lines[-1][:150] if lines else 'no output'}"}


def _end(process: subprocess.Popen[Any]) -> None:
    """End the contestant's process group, which holds its workers; they must not disturb the next one."""
    # Python's resource tracker outlives the first signal and removes the semaphores that workers have left behind.
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = monotonic() + _GRACE_SECONDS
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
            while monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                sleep(0.01)
    process.wait()


class Reference:
    """A ceiling that stays in memory, idle between its windows, so that one can be taken beside every contestant's.

    Args:
        contestant: what to measure.
        task: its task.
    """

    def __init__(self, contestant: Contestant, task: Task) -> None:
        command = [sys.executable, str(_PROGRAM), "serve", contestant.key, task.to_json()]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def measure(self, seconds: float, *, timeout_seconds: float = 120.0) -> dict[str, Any]:
        """One window.

        Raises:
            SystemExit: it does not answer: without it no row means anything.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(seconds, file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], seconds + timeout_seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise SystemExit("the reference ceiling gave no answer: see its error above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _end(self._process)
