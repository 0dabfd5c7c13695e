"""The directory of a training run: what may be one, and one run in it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lmdali.pipeline.errors import InputError, LockedError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.manifest import MANIFEST_FILE
from lmdali.pipeline.path_kind import exists, is_dir

LOCK_FILE = ".lock"
ABLATION_FILE = "ablation.json"
"""In a directory that has one, the runs are in folders of their own."""


def make_run_directory(run_dir: Path) -> None:
    """Make `run_dir` and its parents, where they are missing.

    Raises:
        InputError: it is no directory, holds an ablation, whose runs are in it, or a dataset, whose statistics those
            of the run would replace.
        StorageError: it cannot be made.
    """
    if exists(run_dir) and not is_dir(run_dir):
        raise InputError(f"{run_dir}: exists and is not a directory: choose another --run-dir")
    if exists(run_dir / MANIFEST_FILE):
        raise InputError(f"{run_dir}: holds a dataset: choose another --run-dir")
    if exists(run_dir / ABLATION_FILE):
        raise InputError(f"{run_dir}: holds an ablation: choose another --run-dir")
    with storage_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` while entered; the kernel lets go of it when this process ends, however it ends.

    Raises:
        LockedError: another process trains there.
        StorageError: the lock file cannot be made.
    """
    with storage_errors(run_dir / LOCK_FILE):
        file = (run_dir / LOCK_FILE).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockedError(
                f"{run_dir}: another run is training here ({file.read().strip() or 'unknown'}): "
                "wait for it, stop it, or use another --run-dir"
            ) from None
        except OSError:
            pass  # a file system without locks: training there is the user's choice
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
