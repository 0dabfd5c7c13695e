"""A billion records on paper: which term grows with what, from what was measured, and where it meets a limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scale_dataset import FULL_SIDE_PIXELS, STORED_BYTES

from lmdali.pipeline.files import MAX_JSON_BYTES
from lmdali.pipeline.records import MAX_POSITION
from lmdali.tools.report_table import megabytes

BILLION = 1_000_000_000

_MAX_SHARDS = 100_000
"""Their names have five digits."""

_ADDRESS_BYTES = 1 << 47
"""What a 64-bit process on Linux has with four levels of page tables."""


def paper_rows(largest: dict[str, Any], billion: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, what it grows with, at a billion records, limit or remedy).

    Args:
        largest: the largest dataset that was measured; its costs per record and per shard are carried on.
        billion: manifest and order of a billion records, which were measured too.
    """
    digest_seconds = BILLION / billion["order"]["digest_samples_per_second"]
    first_batch_milliseconds = 1e3 * billion["order"]["first_batch_seconds"]
    return [
        *_limits(billion["manifest"]),
        *_opening(largest, billion["manifest"]),
        *_tables(largest),
        ("resume: where to go on *", "nothing", f"{first_batch_milliseconds:.2f} ms", "computed, not stored"),
        ("digest of a whole epoch", "records", f"{digest_seconds / 60:.0f} min", "loaders add it up as they go"),
    ]


def _limits(manifest: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    sources, shards, mappings = manifest["sources"], manifest["shards"], _max_mappings()
    datasets = math.ceil(sources / (MAX_POSITION + 1))
    data_bytes, raw_bytes = BILLION * STORED_BYTES, BILLION * 3 * FULL_SIDE_PIXELS**2
    return [
        ("sources", "records", f"{sources:,}", f"{MAX_POSITION + 1:,} in a key's 8 digits: {datasets} datasets"),
        (
            "shards of 256 MB",
            "records",
            f"{shards:,}",
            f"{_MAX_SHARDS:,} in a name's 5 digits{_verdict(shards, _MAX_SHARDS)}",
        ),
        ("mappings", "shards", f"{shards:,}", f"{mappings:,}, vm.max_map_count here{_verdict(shards, mappings)}"),
        (
            "address space, JPEG",
            "bytes",
            _terabytes(data_bytes),
            _terabytes(_ADDRESS_BYTES) + _verdict(data_bytes, _ADDRESS_BYTES),
        ),
        (
            "address space, raw",
            "bytes",
            _terabytes(raw_bytes),
            _terabytes(_ADDRESS_BYTES) + _verdict(raw_bytes, _ADDRESS_BYTES),
        ),
    ]


def _verdict(needed: int, limit: int) -> str:
    return ": enough" if needed <= limit else ": TOO LITTLE"


def _terabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e12:.0f} TB"


def _opening(largest: dict[str, Any], manifest: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    check_seconds = largest["opening"]["check_files_seconds"] / largest["shards"] * manifest["shards"]
    limit = megabytes(MAX_JSON_BYTES) + _verdict(manifest["manifest_bytes"], MAX_JSON_BYTES)
    return [
        ("manifest.json *", "shards, rejects", megabytes(manifest["manifest_bytes"]), limit),
        ("  loading and checking it *", "its size", f"{manifest['seconds']:.2f} s", "once per process"),
        ("  memory for that, peak *", "its size", megabytes(manifest["memory_bytes"]), ""),
        ("sizes of all files", "shards", f"{check_seconds:.2f} s", "once per process"),
    ]


def _tables(largest: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    resume = largest["resume"]
    record_bytes = resume["table_bytes"] / largest["records"]
    mapping_seconds = resume["map_all_seconds"] / largest["records"] * BILLION
    return [
        ("offsets in memory", "records", f"{record_bytes * BILLION / 1e9:.0f} GB", "per process that reads all of it"),
        ("checksums compared", "records", f"{BILLION / 1e9:.0f} GB", 'a byte each, only with verify="first"'),
        ("mapping every shard", "records, shards", f"{mapping_seconds:.0f} s", "each when it is first needed"),
    ]


def _max_mappings() -> int:
    return int(Path("/proc/sys/vm/max_map_count").read_text())
