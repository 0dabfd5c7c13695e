"""Archives of corrected images: their members take the place of those of the same file name."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from pathlib import Path

from lmdali.pipeline.errors import InputError
from lmdali.tools.source_entries import Ignored
from lmdali.tools.tar_scan import TarMember, latest_members, open_tar, walk_tar


class ImagePatch:
    """The images of a patch archive that may belong to a source.

    Such an archive corrects training, validation and test images at once, told apart by their names.

    Args:
        path: the archive; None means no patch.
        pattern: of the file names of the source.
        file: number that the reader of the source gives to the archive.
        ignored: counts what is no such image, and what is replaced.

    Attributes:
        size: images in it.
        variant: tells this patch from others and from none; for `Scan.variant`.

    Raises:
        InputError: it is no tar, or names an image twice.
    """

    def __init__(self, path: Path | None, pattern: re.Pattern[str], file: int, ignored: Ignored) -> None:
        self._path, self._file, self._ignored = path, file, ignored
        self._left: dict[str, TarMember] = {}
        self.size, self.variant = 0, ""
        if path is None:
            return
        with open_tar(str(path)) as window:
            for member in latest_members(walk_tar(window, ignored), ignored):
                name = posixpath.basename(member.name)
                if not pattern.fullmatch(name):
                    ignored.add("other_member", member.name)
                elif name in self._left:
                    both = f"{self._left[name].name!r} and {member.name!r}"
                    raise InputError(f"{str(path)!r}: has {both}: which is it? Take the other out")
                else:
                    self._left[name] = member
        self.size = len(self._left)
        names = sorted(f"{name} {member.num_bytes}" for name, member in self._left.items())
        self.variant = f"patch {hashlib.sha256(os.fsencode(' '.join(names))).hexdigest()}"

    def place(self, path: str, place: tuple[int, int, int]) -> tuple[int, int, int]:
        """(file, offset, num_bytes) of an image: in the patch where it has one of its file name, else `place`."""
        if not self._left:
            return place
        member = self._left.pop(posixpath.basename(path), None)
        if member is None:
            return place
        self._ignored.add("patched_image", path)
        return self._file, member.offset, member.num_bytes

    def refuse_leftover(self, where: str) -> None:
        """Refuse a patch with images that the source does not have.

        Raises:
            InputError: naming the first.
        """
        if self._left:
            raise InputError(
                f"{str(self._path)!r}: {len(self._left)} of its images are not in {where}, first "
                f"{next(iter(self._left))!r}: it belongs to other images"
            )

    def detail(self) -> str:
        """For people: `images from patch_images.tar: 12`; empty without a patch."""
        return f"images from {self._path.name}: {self.size:,}" if self._path is not None else ""
