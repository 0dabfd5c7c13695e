"""What a disk may hold after a power cut, worked out from a log of everything a process did to its files.

The log is written by fault_shim.c. The model of the disk, which is harsher than ext4:

* A file holds what its last fsync saw, and of later writes any subset of their 4 KiB pages, some cut off at a sector.
* A directory holds what its last fsync saw, and of later changes of its names any first part, each directory for
  itself: so a name may be there before the data it names, and a rename before the one that was done earlier elsewhere.
* fsync of a new file also makes its name durable, as on ext4; with `strict` it does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096
SECTOR_BYTES = 512


class Operation(NamedTuple):
    """One entry of the log; `kind` and the meaning of the numbers are those of fault_shim.c."""

    kind: str
    inode: int
    offset: int
    is_durable: bool
    path: str
    second: str
    data: bytes


def read_log(path: Path) -> Iterator[Operation]:
    """The operations of a log, in order."""
    with path.open("rb") as file:
        while line := file.readline():
            numbers, name, second = line.decode().rstrip("\n").split("\t")
            kind, inode, offset, length, flags = numbers.split(" ")
            data = file.read(int(length))
            assert len(data) == int(length), "the log is cut off"
            yield Operation(kind, int(inode), int(offset), flags == "1" and kind == "w", name, second, data)


@dataclass(eq=False)
class _File:
    durable: bytes = b""
    current: bytes = b""
    dirty: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, page or None to cut off there)

    def change(self, offset: int, data: bytes | None, *, is_durable: bool) -> None:
        self.current = _changed(self.current, offset, data)
        if is_durable:
            self.durable = _changed(self.durable, offset, data)
        elif data is None:
            self.dirty.append((offset, None))
        else:
            start = 0
            while start < len(data):  # pieces that end where a page of the file ends
                size = PAGE_BYTES - (offset + start) % PAGE_BYTES
                self.dirty.append((offset + start, data[start : start + size]))
                start += size

    def sync(self) -> None:
        self.durable, self.dirty = self.current, []

    def crashed(self, dice: random.Random) -> bytes:
        """Some content that the disk may have."""
        if not self.dirty:
            return self.durable
        share = dice.choice((0.0, 0.5, 0.9, 1.0))
        content, is_all = self.durable, True
        for offset, data in self.dirty:
            if dice.random() >= share:
                is_all = False
                continue
            if data is not None and dice.random() < 0.03:
                data, is_all = data[: SECTOR_BYTES * dice.randint(0, len(data) // SECTOR_BYTES)], False
            content = _changed(content, offset, data)
        return self.current if is_all else content


def _changed(content: bytes, offset: int, data: bytes | None) -> bytes:
    if data is None:
        return content[:offset].ljust(offset, b"\0")
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


@dataclass(eq=False)
class _Folder:
    durable: dict[str, _Node] = field(default_factory=dict)
    current: dict[str, _Node] = field(default_factory=dict)
    pending: list[tuple[str | None, str | None, _Node]] = field(default_factory=list)  # name before, after, node

    def change(self, before: str | None, after: str | None, node: _Node) -> None:
        _renamed(self.current, before, after, node)
        self.pending.append((before, after, node))

    def sync(self, count: int | None = None) -> None:
        """Make the first `count` pending changes durable, or all."""
        count = len(self.pending) if count is None else count
        for change in self.pending[:count]:
            _renamed(self.durable, *change)
        del self.pending[:count]

    def crashed(self, dice: random.Random) -> dict[str, _Node]:
        names = dict(self.durable)
        for change in self.pending[: dice.choice((0, len(self.pending), dice.randint(0, len(self.pending))))]:
            _renamed(names, *change)
        return names


_Node = _File | _Folder


def _renamed(names: dict[str, _Node], before: str | None, after: str | None, node: _Node) -> None:
    if before is not None:
        names.pop(before, None)
    if after is not None:
        names[after] = node


class Disk:
    """The part of a disk below one folder, and every state in which a power cut may leave it.

    Args:
        root: the watched folder; what lies there now is taken for durable.
        strict: fsync of a new file does not make its name durable.
    """

    def __init__(self, root: Path, *, strict: bool = False) -> None:
        self._root, self._strict = str(root), strict
        self._nodes: dict[int, _Node] = {}
        self._top = self._load(root)

    def _load(self, path: Path) -> _Folder:
        folder = _Folder()
        self._nodes[path.stat().st_ino] = folder
        for entry in path.iterdir():
            node: _Node = self._load(entry) if entry.is_dir() else _File(*[entry.read_bytes()] * 2)
            self._nodes[entry.stat().st_ino] = node
            folder.durable[entry.name] = folder.current[entry.name] = node
        return folder

    def apply(self, operation: Operation) -> None:
        """Do what the process did."""
        kind, inode, offset, is_durable, path, second, data = operation
        if kind in "cm":
            self._nodes[inode] = _File() if kind == "c" else _Folder()
            folder, name = self._place(path)
            folder.change(None, name, self._nodes[inode])
        elif kind in "ud":
            folder, name = self._place(path)
            folder.change(name, None, folder.current[name])
        elif kind == "r":
            folder, name = self._place(path)
            target, new_name = self._place(second)
            assert folder is target, "a rename between folders is not in the model"
            folder.change(name, new_name, folder.current[name])
        elif kind == "l":
            folder, name = self._place(path)
            target, new_name = self._place(second)
            target.change(None, new_name, folder.current[name])
        elif kind == "s":
            self._sync(inode, path)
        else:
            node = self._nodes[inode]
            assert kind in "wt" and isinstance(node, _File), operation[:6]
            node.change(offset, data if kind == "w" else None, is_durable=is_durable)

    def _sync(self, inode: int, path: str) -> None:
        node = self._nodes[inode]
        node.sync()
        if isinstance(node, _File) and not self._strict:
            folder, _ = self._place(path)
            places = [n for n, (_, _, other) in enumerate(folder.pending) if other is node]
            folder.sync(places[0] + 1 if places else 0)

    def _place(self, path: str) -> tuple[_Folder, str]:
        folder = self._top
        *parents, name = path[len(self._root) + 1 :].split("/")
        for parent in parents:
            below = folder.current[parent]
            assert isinstance(below, _Folder)
            folder = below
        return folder, name

    def now(self) -> dict[str, bytes | None]:
        """What the running system sees: relative path -> content, None for a folder."""
        return self._walk(lambda folder: folder.current, lambda file: file.current)

    def crashed(self, dice: random.Random) -> dict[str, bytes | None]:
        """What is there after a power cut at this moment, as `now` gives it."""
        return self._walk(lambda folder: folder.crashed(dice), lambda file: file.crashed(dice))

    def _walk(
        self, names: Callable[[_Folder], dict[str, _Node]], content: Callable[[_File], bytes]
    ) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        left: list[tuple[str, _Folder]] = [("", self._top)]
        while left:
            place, folder = left.pop()
            for name, node in names(folder).items():
                if isinstance(node, _Folder):
                    found[place + name] = None
                    left.append((f"{place}{name}/", node))
                else:
                    found[place + name] = content(node)
        return found


def below(state: dict[str, bytes | None], prefix: str) -> dict[str, bytes | None]:
    """What a state has below one folder, whose name with its slash is `prefix`."""
    return {name.removeprefix(prefix): data for name, data in state.items() if name.startswith(prefix)}


def put_down(state: dict[str, bytes | None], root: Path) -> None:
    """Make real files of a state."""
    for name, content in sorted(state.items(), key=lambda item: item[0].count("/")):
        if content is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).write_bytes(content)
