"""Faults at exact calls: the preloaded library of fault_shim.c, and processes to harm with it.

A server process imports everything once and forks a child for each request; the child arms the shim and works. So one
kill point costs some milliseconds instead of the start of Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from storage_states import odd_source

NOTHING, KILL, FAIL, FAIL_ON, HALF_KILL, HALF_FAIL = range(6)
"""What happens at the n-th call: nothing; SIGKILL before it is done; an error; an error from then on; half of a write,
then SIGKILL, or an error for the rest."""

_HERE = Path(__file__).parent


def compile_shim(folder: Path) -> Path:
    """Build the shared library, or skip the test where there is no compiler; in CI that is a failure."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "gcc is missing: in CI the faults have to be tested"
        pytest.skip("LOUD: no gcc here, so NO fault was injected")
    library = folder / "fault_shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", library, _HERE / "fault_shim.c"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return library


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        code: exit code, or minus the number of the signal.
        error: class of the exception that ended it, "" for none.
        message: its text.
        kinds: one letter for each call that changed a file, see fault_shim.c; "" where the child was killed.
        answer: what the work returned.
    """

    code: int
    error: str = ""
    message: str = ""
    kinds: str = ""
    answer: Any = None


class ForkServer:
    """Runs the work of fault_server.py in children with the shim armed for everything below `root`.

    Args:
        library: from `compile_shim`.
        root: the folder that is watched.
        source: the class folders to convert.
    """

    def __init__(self, library: Path, root: Path, source: Path) -> None:
        self.root = root
        self._process = subprocess.Popen(
            [sys.executable, _HERE / "fault_server.py", root, source],
            env={**os.environ, "LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        work: str,
        *,
        action: int = NOTHING,
        at: int = 0,
        error: int = 0,
        only: str = "",
        log: Path | None = None,
        **arguments: Any,
    ) -> Outcome:
        """Do `work` of fault_server.py in a child.

        Args:
            work: name of the function.
            action: what happens at call number `at`, counted from 1.
            at: see `action`.
            error: errno of calls that fail.
            only: letters of the kinds of calls that are counted; "" is all.
            log: file that what was done is appended to, for power_cut.py; then fsync is really called.
            arguments: of the function; paths as str.
        """
        fault = {"action": action, "at": at, "error": error, "only": only, "log": str(log or "")}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"work": work, "fault": fault, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server is gone"
        return Outcome(**json.loads(line))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(100)


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """A server in a folder of its own, in memory where that can be: what is killed is a process, not the machine."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="lmdali-", dir=memory if os.access(memory, os.W_OK) else None) as name:
        folder = Path(name)
        (folder / "work").mkdir()
        server = ForkServer(compile_shim(folder), folder / "work", odd_source(folder / "source"))
        try:
            yield server
        finally:
            server.close()


class Shim:
    """The library as seen from inside a process that has it preloaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fault_kinds.restype = ctypes.c_char_p

    def arm(self, root: str, *, action: int, at: int, error: int, only: str, log: str) -> None:
        """Begin to count; see `ForkServer.run`."""
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else -1
        self._library.fault_arm(
            os.fsencode(root), action, ctypes.c_long(at), error, only.encode(), descriptor, 0 if log else 1
        )

    def disarm(self) -> str:
        """Stop; the kinds of the calls that were counted."""
        self._library.fault_disarm()
        return str(self._library.fault_kinds().decode())
