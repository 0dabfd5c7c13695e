"""Filesystems by name: from lists of mounts as kernels write them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lmdali.pipeline import filesystem
from lmdali.pipeline.dataset_place import open_reader
from lmdali.pipeline.filesystem import (
    NetworkDiskWarning,
    advise_on_network_disk,
    filesystem_of,
    is_shared_disk,
    network_disk,
)

LINES = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
40 22 0:45 / /data rw,relatime shared:7 - nfs4 server:/export rw,vers=4.2
41 40 0:46 / /data/local rw - xfs /dev/nvme0n1 rw
42 22 0:47 / /mnt/my\040sets rw - cifs //server/sets rw
43 22 0:48 / /bucket rw - fuse.s3fs s3fs rw,user_id=0
44 22 0:49 / /union rw - fuse.mergerfs a:b rw
45 22 0:50 / /host rw - 9p share rw,trans=virtio
46 22 0:51 / /twice rw - nfs server:/old rw
47 22 0:52 / /twice rw - tmpfs tmpfs rw
48 22 0:53 / /lustre rw - lustre mgs@tcp:/fs rw
a line of something else
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    path.write_text(LINES)
    monkeypatch.setattr(filesystem, "MOUNTS", path)


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    ("path", "kind", "shared"),
    [
        ("/home/me/set", None, False),
        ("/data", "nfs4", True),
        ("/data/imagenet/train", "nfs4", True),
        ("/database", None, False),
        ("/data/local/set", None, False),
        ("/mnt/my sets/train", "cifs", True),
        ("/bucket/set", "fuse.s3fs", True),
        ("/union/set", None, False),
        ("/host/set", "9p", False),
        ("/twice/set", None, False),
        ("/lustre/set", "lustre", True),
    ],
)
def test_network_filesystems_are_told_by_the_mount_that_a_path_is_under(
    path: str, kind: str | None, shared: bool
) -> None:
    assert network_disk(Path(path)) == kind
    assert is_shared_disk(Path(path)) == shared


@pytest.mark.usefixtures("mounts")
def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/data/imagenet")
    assert filesystem_of(tmp_path / "link" / "train") == ("nfs4", "/data")


def test_a_system_without_such_a_list_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "missing")
    assert filesystem_of(Path("/data")) is None
    assert network_disk(Path("/data")) is None


def test_this_machine_has_a_filesystem() -> None:
    if filesystem.MOUNTS.exists():
        assert filesystem_of(Path("/proc/self/status")) == ("proc", "/proc")


def test_a_dataset_on_a_network_disk_is_told_once(
    tmp_path: Path, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "_warned", set())
    listed = tmp_path / "mountinfo"
    listed.write_text(f"40 22 0:45 / {small_jpeg_dataset.parent.resolve()} rw - nfs server:/export rw\n")
    monkeypatch.setattr(filesystem, "MOUNTS", listed)
    with pytest.warns(
        NetworkDiskWarning, match=rf"{small_jpeg_dataset} is on nfs.*lmdali stage {small_jpeg_dataset} DIR"
    ):
        open_reader(small_jpeg_dataset).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_reader(small_jpeg_dataset).close()
        advise_on_network_disk(Path("/elsewhere"))
