"""Machine code of kernels on disk: used again only for the very sources it was made of, and never missed.

numba keeps it by the content of a kernel's own file. What other files have a part in it, the functions and numbers
that a kernel imports, it does not see: after an upgrade in place the loader would go on with machine code of the
version before. So the files here are named by a digest of all sources that a kernel can reach. A name of its own also
ends a race: numba says in its index that a file is there before it is, and an older one of that name could be read.
Signatures and processors have names of their own, too: machines that share a folder, and of whose files each learns
late, would number them alike, and one would run what was compiled for another's processor.
"""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
import re
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any

from lmdali.pipeline.errors import MissingExtraError

try:
    from numba.core.caching import FunctionCache, IndexDataCacheFile
except ImportError as error:
    raise MissingExtraError("numba", "train", "compiled kernels") from error

_DAY_SECONDS = 86_400
_UNUSED_DAYS = 90
"""After which machine code of other sources is removed: a version that is used notes it, and its file's time with it.
One that is missed is compiled again, so whoever is wrong here loses seconds."""

_IMPORT = re.compile(rb"^from ([\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)


class _CheckedFiles(IndexDataCacheFile):  # type: ignore[misc]
    """numba's index and data, with a hash: what a crash of the machine has left holes in would be run."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        super()._save_data(name, (hashlib.sha256(content).digest(), content))

    def _load_data(self, name: str) -> Any:
        digest, content = super()._load_data(name)
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"{name} is damaged")
        return pickle.loads(content)


class KernelCache(FunctionCache):  # type: ignore[misc]  # numba has no types
    """What a numba dispatcher asks for machine code, and gives it to. A disk that refuses is as good as none.

    Args:
        kernel: the Python function.

    Raises:
        RuntimeError: there is no directory that can be written.
    """

    def __init__(self, kernel: Any) -> None:
        super().__init__(kernel)
        self._sources = sources_digest(Path(kernel.__code__.co_filename))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The machine code of a signature; None where there is none, or a damaged one, which is forgotten."""
        try:
            found = super().load_overload(sig, target_context)
            with suppress(OSError):
                if found is not None and _unused_days(self._index) > 1:
                    os.utime(self._index)
            return found
        except Exception:  # whatever unpickling raises of a file that a power cut or a full disk has cut short
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code, where the disk has room for it: it is in memory all the same. What is old goes."""
        with suppress(OSError):
            super().save_overload(sig, data)
            _remove_unused(Path(self._cache_path))

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """What tells machine code apart. numba asks for it before it turns to the files, those of this key."""
        key = super()._index_key(sig, codegen)
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        base = f"{self._impl.filename_base}.{self._sources}.{name}"
        self._index = Path(self._cache_path, f"{base}.nbi")
        self._cache_file = _CheckedFiles(self._cache_path, base, source_stamp=self._sources)
        return key


def _remove_unused(folder: Path) -> None:
    """Remove machine code that no version of ours has used for long."""
    for index in folder.glob("*.nbi"):
        with suppress(FileNotFoundError):  # another process was quicker
            if _unused_days(index) > _UNUSED_DAYS:
                index.unlink()
                for data in folder.glob(f"{glob.escape(index.stem)}.*.nbc"):
                    data.unlink()


def _unused_days(index: Path) -> float:
    return (time() - index.stat().st_mtime) / _DAY_SECONDS


@cache
def sources_digest(file: Path) -> str:
    """16 hexadecimal digits for the content of a module's file and of all files of its package that it imports.

    What counts are imports at the beginning of a line, in the form `from ... import ...`.
    """
    pending, found = [file], dict[Path, bytes]()
    while pending:
        path = pending.pop()
        if path not in found:
            found[path] = path.read_bytes()
            pending += _imported(found[path])
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(hashlib.sha256(path.name.encode() + b"\0" + found[path]).digest())
    return digest.hexdigest()[:16]


def _imported(source: bytes) -> list[Path]:
    own, found = __name__.partition(".")[0], []
    for place, names in _IMPORT.findall(source):
        if (module := place.decode()).partition(".")[0] == own:
            spec = find_spec(module)
            found.append(spec)
            if spec is not None and spec.submodule_search_locations is not None:  # a package: its modules, perhaps
                found += [find_spec(f"{module}.{name.decode()}") for name in re.findall(rb"\w+", names)]
    return [Path(spec.origin) for spec in found if spec is not None and spec.origin is not None]
