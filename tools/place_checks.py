"""What a directory or an address is to lmdali: a dataset or room for one, on which disk, as large as what memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.cache_check import require_cache_directory
from lmdali.pipeline.dataset_place import Place, place_manifest, place_shown
from lmdali.pipeline.eigenbasis import STATISTICS_FILE
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.filesystem import filesystem_of, network_disk
from lmdali.pipeline.manifest import MANIFEST_FILE, Manifest, load_manifest
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.pipeline.shard_cache import cache_bytes, cache_directory
from lmdali.tools.finding import Finding, first_line
from lmdali.tools.machine_checks import available_memory
from lmdali.tools.report_table import megabytes


def cache_findings() -> Iterator[Finding]:
    """The cache of datasets at an address."""
    try:
        directory = cache_directory()
        cache_bytes()  # which may be no number
        require_cache_directory(directory)
        found = f"{directory}, {_disk(directory)}"
    except (LmdaliError, OSError) as error:
        yield Finding("shard cache", str(error), "caution", "datasets at an address need it; others do not")
        return
    yield Finding("shard cache", found)


def place_findings(place: Place) -> Iterator[Finding]:
    """A dataset's directory or address, or a directory that something will be written into."""
    what = place_shown(place)
    try:
        if isinstance(place, str):
            yield _address(what, place)
        elif exists(place / MANIFEST_FILE):
            yield from _dataset(what, place)
        elif is_dir(place):
            yield _folder(what, place)
        else:
            found = "no directory" if exists(place) else "no such directory"
            yield Finding(what, found, "problem", "name a dataset, or a directory to write datasets into")
    except OSError as error:  # a folder on the way that may not be entered, or a name that is too long
        yield Finding(what, first_line(error), "problem", "look at its permissions, or choose another directory")


def _address(what: str, address: str) -> Finding:
    began = perf_counter()
    try:
        manifest = place_manifest(address)
    except LmdaliError as error:
        return Finding(what, first_line(error), "problem", "docs/streaming.md says what an address needs")
    return Finding(what, f"{_contents(manifest)}; its manifest came in {perf_counter() - began:.1f} s")


def _dataset(what: str, directory: Path) -> Iterator[Finding]:
    try:
        manifest = load_manifest(directory)
    except LmdaliError as error:
        yield Finding(what, first_line(error), "problem", f"lmdali verify {what}")
        return
    memory = available_memory()
    fits = memory is not None and manifest.file_bytes < memory
    size = "" if memory is None else f", {'fits into' if fits else 'more than'} the memory that is available"
    yield Finding(what, f"{_contents(manifest)}{size}; {_disk(directory)}")
    if not exists(directory / STATISTICS_FILE):
        yield Finding(what, "has no statistics: no mean, no lighting", "caution", f"lmdali pca {what}")
    kind = network_disk(directory)
    if kind is not None:
        found = f"is on {kind}: records at random over a network are slow"
        yield Finding(what, found, "caution", f"lmdali stage {what} DIR copies it to a disk of this machine")


def _folder(what: str, directory: Path) -> Finding:
    found = f"no dataset, {_disk(directory)}"
    if not os.access(directory, os.W_OK | os.X_OK):
        return Finding(what, f"{found}; it cannot be written", "problem", "choose another directory")
    return Finding(what, found)


def _contents(manifest: Manifest) -> str:
    return f"{manifest.num_records:,} records, {manifest.encoding}, {megabytes(manifest.file_bytes)}"


def _disk(directory: Path) -> str:
    found = filesystem_of(directory)
    return f"{megabytes(shutil.disk_usage(directory).free)} free" + (f" on {found[0]}" if found else "")
