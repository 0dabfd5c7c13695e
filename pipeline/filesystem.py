"""Which filesystem a directory lies on, and whether that is a network: what the kernel's list of mounts says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
"""As proc(5) describes it; there is none but on Linux."""

_NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|lustre|gpfs|ceph|beegfs|afs|glusterfs|orangefs|pvfs2|wekafs|ncpfs|coda|9p|virtiofs"
    r"|fuse\.(sshfs|s3fs|goofys|gcsfuse|gcs|rclone|mount-s3|mountpoint-s3|blobfuse2?|juicefs|alluxio\S*|ceph|glusterfs"
    r"|seaweedfs|davfs2?|curlftpfs|nfs\S*|smbnetfs|beegfs|moosefs|mfs\S*|hdfs\S*|fuse_dfs)"
)
_OF_THIS_MACHINE = ("9p", "virtiofs")
"""Folders of a virtual machine's host: as far away as a network, but with one kernel's locks."""

_ESCAPED = re.compile(r"\\([0-7]{3})")
_warned: set[str] = set()


class NetworkDiskWarning(UserWarning):
    """A dataset is read over a network, record by record."""


def filesystem_of(path: Path) -> tuple[str, str] | None:
    """Type and mount point of the filesystem that a path is on, or will be on; None where the system does not say."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = path.resolve()
    found: tuple[str, str] | None = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
        # Of several mounts in one place the last one is seen.
        if place.is_relative_to(point) and (found is None or len(point) >= len(found[1])):
            found = after.split()[0], point
    return found


def network_disk(path: Path) -> str | None:
    """Type of the network filesystem that a path is on; None for a disk of this machine, and where nobody knows."""
    found = filesystem_of(path)
    return found[0] if found is not None and _NETWORK.fullmatch(found[0]) else None


def is_shared_disk(path: Path) -> bool:
    """Whether other machines may have the same files, so that locks of this one mean little."""
    kind = network_disk(path)
    return kind is not None and kind not in _OF_THIS_MACHINE


def advise_on_network_disk(dataset: Path) -> None:
    """Warn, once for each mount point, that a dataset is read over a network.

    Warns:
        NetworkDiskWarning: with what to do.
    """
    kind, found = network_disk(dataset), filesystem_of(dataset)
    if kind is None or found is None or found[1] in _warned:
        return
    _warned.add(found[1])
    warnings.warn(
        f"{dataset} is on {kind}: records at random over a network are slow, and slower while others read. "
        f"`lmdali stage {dataset} DIR` copies it to a disk of this machine; order block reads a few shards at a time",
        NetworkDiskWarning,
        stacklevel=3,
    )
