"""What the system says of a file, and what to do about it."""

from __future__ import annotations

import errno

_NEXT_STEPS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions or its owner"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files (ulimit -n)"),
    **dict.fromkeys((errno.ESTALE, errno.EHOSTDOWN), "mount the network disk again"),
    errno.EFBIG: "its filesystem, or a limit (ulimit -f), takes no file of this size: choose another disk",
    errno.EIO: "the disk or the way to it fails: see the system's log",
    errno.ELOOP: "it is a link that leads to itself: remove it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path; it may have been removed meanwhile",
    errno.ENOTDIR: "a part of its path is a file: choose another path",
    errno.EROFS: "choose a place that can be written",
}
"""What to do about an error of the system."""


def system_says(error: OSError) -> str:
    """What the system says of a file, and what to do about it where that is known."""
    said, step = error.strerror or str(error), _NEXT_STEPS.get(error.errno or 0)
    return said if step is None else f"{said}: {step}"
