"""What is at a path: nothing, or what kind of thing; and an error where that cannot be told.

Since Python 3.14 the methods of `pathlib.Path` say no where the system says "permission denied" or "I/O error", too. A
dataset in a folder that may not be entered would be "no such directory", and a run on a disk that fails for a moment
would begin anew over the one that is there. Here only what is absent is: the rule of Python before 3.14.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)


def exists(path: Path) -> bool:
    """Whether there is something, links followed.

    Raises:
        OSError: that cannot be told.
    """
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether there is a file, links followed.

    Raises:
        OSError: that cannot be told.
    """
    return stat.S_ISREG(_mode(path))


def is_dir(path: Path) -> bool:
    """Whether there is a directory, links followed.

    Raises:
        OSError: that cannot be told.
    """
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """Its type and permissions; 0 where there is nothing, which no type is."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
    except ValueError:  # a name with a zero byte is of nothing
        pass
    return 0
