"""The development kits of ILSVRC2010 and ILSVRC2012: which image of the validation set shows what.

Ground truth names classes by the kit's own ids, 1 to 1000 in an order of the kit. Labels are another numbering: the
position among the sorted WordNet ids. Taking one for the other gives labels that look right and are all wrong.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.pipeline.system_error import system_says
from lmdali.tools.class_table import read_class_table
from lmdali.tools.source_entries import Ignored
from lmdali.tools.tar_scan import TarWindow, latest_members, walk_tar

WNID = re.compile(r"n\d{8}")
"""A WordNet id, as classes of ImageNet are called."""

DEVKIT_NAMES = {
    "ILSVRC2012": ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar", "ILSVRC2012_devkit_t12"),
    "ILSVRC2010": ("ILSVRC2010_devkit-1.0.tar.gz", "ILSVRC2010_devkit-1.0.tar", "devkit-1.0"),
}
"""What the kit of each challenge is called, as it comes, unpacked once, and unpacked wholly."""

_OTHER_FILE = "is it the development kit of this challenge? If so, download it again"
_MAX_DEVKIT_BYTES = 256_000_000
_MAX_TRUTH_BYTES = 16_000_000
_INTEGER = re.compile(rb"\d{1,9}")


@dataclass(frozen=True)
class Devkit:
    """A development kit.

    Attributes:
        where: the kit, for messages.
        wnids: of the classes; position is the kit's id less 1.
        validation: its ground truth file for the validation images, as bytes.
    """

    where: str
    wnids: tuple[str, ...]
    validation: bytes

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of everybody's labels: sorted."""
        return tuple(sorted(self.wnids))


def find_devkit(beside: Path, challenge: str) -> Path:
    """The development kit in the folder of the images.

    Args:
        beside: an archive of images or a folder of them.
        challenge: "ILSVRC2012" or "ILSVRC2010".

    Raises:
        InputError: there is none.
    """
    folder = Path(os.path.abspath(beside)).parent  # noqa: PTH100
    names = DEVKIT_NAMES.get(challenge, ())
    for name in names:
        if exists(folder / name):
            return folder / name
    raise InputError(
        f"{str(beside)!r}: labels of these images are in the development kit of {challenge}, and {str(folder)!r} has "
        f"none of {', '.join(names) or 'the known ones'}: put it there, or say where it is (--devkit)"
    )


def read_devkit(path: Path, challenge: str) -> Devkit:
    """Read a development kit: its archive, compressed or not, or its folder.

    Raises:
        InputError: it is not one, or is damaged.
        MissingExtraError: scipy is not installed, which reads its class table.
    """
    meta, truth = "data/meta.mat", f"data/{challenge}_validation_ground_truth.txt"
    files = _from_folder(path, (meta, truth)) if is_dir(path) else _from_archive(path, (meta, truth))
    return Devkit(repr(str(path)), _leaf_wnids(files[meta], f"{challenge}_ID", f"{str(path)!r}, {meta}"), files[truth])


def parse_ground_truth(text: bytes, where: str, num_classes: int) -> list[int]:
    """Class ids from 1 on, one line for each image.

    Raises:
        InputError: naming the line and what it says.
    """
    ids = []
    for number, line in enumerate(text.rstrip().split(b"\n"), 1):
        word = line.strip()
        if not _INTEGER.fullmatch(word) or not 1 <= int(word) <= num_classes:
            raise InputError(
                f"{where}, line {number}: {os.fsdecode(word[:40])!r} is no class id; expected 1 to {num_classes}"
            )
        ids.append(int(word))
    return ids


def read_ground_truth(path: Path) -> bytes:
    """The bytes of a ground truth file.

    Raises:
        InputError: it cannot be read, or is far too large for one.
    """
    return _content(path, _MAX_TRUTH_BYTES)


def _content(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read ({system_says(error)})") from None
    if len(data) > limit:
        raise InputError(f"{str(path)!r}: more than {limit} bytes: not the file it should be: check the path")
    return data


def _from_folder(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: _content(path / name, _MAX_DEVKIT_BYTES) for name in names}


def _from_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    data = _content(path, _MAX_DEVKIT_BYTES)
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_MAX_DEVKIT_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{str(path)!r}: does not decompress ({error}): download it again") from None
        if len(data) > _MAX_DEVKIT_BYTES:
            raise InputError(f"{str(path)!r}: decompresses to more than {_MAX_DEVKIT_BYTES} bytes: {_OTHER_FILE}")
    window = TarWindow(lambda offset, size: data[offset : offset + size], 0, len(data), repr(str(path)))
    members = latest_members(walk_tar(window, Ignored()), Ignored())
    found = {}
    for name in names:
        member = next((member for member in members if f"/{member.name}".endswith(f"/{name}")), None)
        if member is None:
            raise InputError(f"{str(path)!r}: has no {name}: {_OTHER_FILE}")
        found[name] = window.content(member)
    return found


def _leaf_wnids(data: bytes, id_field: str, where: str) -> tuple[str, ...]:
    """Of the rows without children, which are the classes: WordNet ids in the order of the kit's ids."""
    wnids: dict[int, str] = {}
    for row, (number, name, num_children) in enumerate(read_class_table(data, id_field, where)):
        if not isinstance(name, str) or not WNID.fullmatch(name):
            raise _odd(where, f"row {row} of synsets has the WNID {str(name)[:40]!r}; expected n and 8 digits")
        if not _is_integer(number) or not _is_integer(num_children):
            raise _odd(where, f"row {row} of synsets ({name}) has no integer {id_field} or num_children")
        if num_children == 0 and wnids.setdefault(int(number), name) != name:
            raise _odd(where, f"{id_field} {int(number)} belongs to both {wnids[int(number)]} and {name}")
    if sorted(wnids) != list(range(1, len(wnids) + 1)) or not wnids:
        raise _odd(where, f"the {id_field} of its {len(wnids)} classes do not run from 1 to {len(wnids)}")
    if len(set(wnids.values())) != len(wnids):
        raise _odd(where, f"a WNID belongs to two values of {id_field}")
    return tuple(wnids[number] for number in range(1, len(wnids) + 1))


def _odd(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what}: {_OTHER_FILE}")


def _is_integer(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())
