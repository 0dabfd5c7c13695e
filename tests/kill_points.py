"""Work that is killed at every single file operation, each time in a process of its own, and then begun again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401  # what parquet imports when it first reads; not in every child


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a forked process that does `work`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        gc.freeze()  # or the child's collector would write to all that it shares with its parent
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(operation: int, below: Path) -> None:
    """End this process with code 9 right before its n-th change to a file below a directory."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")
        if event == "open" and isinstance(arguments[2], int):
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and any(str(below) in str(argument) for argument in arguments[:2]):
            count += 1
            if count == operation:
                os._exit(9)

    sys.addaudithook(watch)


def kill_everywhere(
    root: Path, prepare: Callable[[Path], None], work: Callable[[Path], object], check: Callable[[Path], None]
) -> int:
    """Kill `work` at each of its file operations, do it again, and `check`; returns the number of operations.

    Args:
        root: an empty directory.
        prepare: makes the directory that is worked on.
        work: is killed; run again it must finish.
        check: raises where the result is not right.
    """
    points = 0
    while True:
        points += 1
        place = root / f"killed{points}"
        prepare(place)

        def killed(place: Path = place, points: int = points) -> None:
            die_at(points, place)
            work(place)

        code = in_child(killed)
        if code == 0:
            check(place)
            return points - 1
        assert code == 9, f"kill {points}: exit code {code}"
        assert in_child(lambda place=place: work(place)) == 0, f"could not go on after kill {points}"  # type: ignore[misc]
        check(place)


def kill_script(script: str, root: Path, *words: str) -> None:
    """Run a script that prints what `kill_everywhere` returns, in a fresh process, without threads for a fork to lose.

    Args:
        script: Python, with `root` and `words` in `sys.argv`; it imports modules of this folder.
        root: an empty directory.
        words: what else it needs to be told.
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), *words],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20, "the audit hook saw too little to mean anything"
