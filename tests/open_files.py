"""What a test leaves open: servers of others in its process have threads and descriptors that come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def open_files(below: Path) -> list[Path]:
    """Files in a folder, one for each descriptor."""
    return [target for target in _targets() if target.is_relative_to(below)]


def open_descriptors() -> int:
    """All descriptors, others' too: of what is done often enough, a leak shows beside those."""
    return len(list(_targets()))


def our_threads() -> set[threading.Thread]:
    """Threads that lmdali has begun and named."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("lmdali")}


def _targets() -> Iterator[Path]:
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this listing, and whatever is closed meanwhile
            yield entry.readlink()
