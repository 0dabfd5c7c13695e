"""Machine code that was kept is used for the sources it was made of, and for no others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

from lmdali.pipeline import jpeg_kernel
from lmdali.pipeline.kernel_cache import KernelCache, sources_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A kernel in a folder beside those of lmdali, and a module with a number for it."""
    folder = tmp_path / "lmdali/beside"
    folder.mkdir(parents=True)
    (folder / "numbers.py").write_text("NUMBER = 1\n")
    (folder / "kernel.py").write_text(
        "from lmdali.beside.numbers import NUMBER\n"
        "from lmdali.pipeline.crop_kernel import compiled\n\n\n"
        "@compiled\ndef answer():\n    return NUMBER\n"
    )
    return folder


SCRIPT = """
import os, resource, sys
from lmdali.pipeline import crop_kernel
for line in sys.stdin:
    if os.fork() == 0:
        if "full disk" in line:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        from lmdali.beside.kernel import answer
        print(answer(), sum(answer.stats.cache_hits.values()), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture
def answer(package: Path) -> Iterator[Callable[..., tuple[int, int]]]:
    """What the kernel says in a process of its own, and how many signatures came from the disk.

    They are forked from one that has imported numba. It keeps no modules: a file that is written twice within a second
    would be taken for the first.
    """
    environment = os.environ | {"PYTHONPATH": str(package.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as first:
        assert first.stdin is not None and first.stdout is not None and first.stderr is not None
        stdin, stdout, stderr = first.stdin, first.stdout, first.stderr

        def ask(word: str = "") -> tuple[int, int]:
            print(word, file=stdin, flush=True)
            line = stdout.readline()
            assert line, stderr.read()
            number, hits = line.split()
            return int(number), int(hits)

        yield ask


def test_a_number_of_another_module_makes_a_kernel_anew(package: Path, answer: Callable[..., tuple[int, int]]) -> None:
    """As an upgrade in place does: the kernel's own file is what it was."""
    assert answer() == (1, 0)
    assert answer() == (1, 1)
    (package / "numbers.py").write_text("NUMBER = 2\n")
    assert answer() == (2, 0)
    assert answer() == (2, 1)


def test_a_damaged_cache_is_made_again(package: Path, answer: Callable[..., tuple[int, int]]) -> None:
    """What a power cut leaves of files that were not synced."""
    assert answer() == (1, 0)
    for kind in ("nbi", "nbc"):
        (file,) = (package / "__pycache__").glob(f"*.{kind}")
        file.write_bytes(file.read_bytes()[:7])
        assert answer() == (1, 0)
        assert answer() == (1, 1)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)  # machine code that would be run
    file.write_bytes(content)
    assert answer() == (1, 0)


def test_a_full_disk_keeps_no_kernel_and_nobody_from_it(package: Path, answer: Callable[..., tuple[int, int]]) -> None:
    assert answer("full disk") == (1, 0)
    assert not list((package / "__pycache__").glob("*.nb*"))


def test_who_learns_late_of_another_ones_files_does_not_take_them_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network disk, where each of two machines that compile at once finds no index there."""

    def double(number: float) -> float:
        return number + number

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    kernel: Any = numba.njit(double)
    kinds = (numba.int64,), (numba.float64,)
    for kind in kinds:
        kernel.compile(kind)
    target, compiled = kernel.targetctx, kernel.overloads
    one, other, later = (KernelCache(double) for _ in range(3))
    write = IndexDataCacheFile._save_data

    def write_late(files: Any, name: str, data: Any) -> None:
        monkeypatch.setattr(IndexDataCacheFile, "_save_data", write)
        other.save_overload(kinds[1], compiled[kinds[1]])
        write(files, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_load_index", lambda files: {})
        monkeypatch.setattr(IndexDataCacheFile, "_save_data", write_late)
        one.save_overload(kinds[0], compiled[kinds[0]])
    found = [later.load_overload(kind, target) for kind in kinds]
    assert [made and made.signature.args for made in found] == list(kinds)


def test_what_no_version_has_used_for_long_is_removed_when_another_is_compiled(
    package: Path, answer: Callable[..., tuple[int, int]]
) -> None:
    kept, numbers = package / "__pycache__", package / "numbers.py"
    for number in (1, 2, 3):
        numbers.write_text(f"NUMBER = {number}\n")
        assert answer() == (number, 0)
        for index in kept.glob("*.nbi"):
            os.utime(index, (0, 0))
    assert len(list(kept.glob("*.nbi"))) == len(list(kept.glob("*.nbc"))) == 1, "each was old when the next one came"
    assert answer() == (3, 1), "and is used meanwhile"
    numbers.write_text("NUMBER = 4\n")
    assert answer() == (4, 0)
    numbers.write_text("NUMBER = 3\n")
    assert answer() == (3, 1)


def test_the_digest_is_of_all_that_a_module_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Path(jpeg_kernel.__file__)
    read, seen = Path.read_bytes, set[str]()

    def note(path: Path) -> bytes:
        seen.add(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", note)
    sources_digest.cache_clear()
    assert len(sources_digest(module)) == 16
    assert seen >= {"jpeg_kernel.py", "entropy_kernel.py", "huffman_tables.py", "word_access.py", "jpeg_header.py"}
    assert "dataset_loader.py" not in seen
