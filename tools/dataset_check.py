"""Every byte of a dataset against its manifest, with all threads at work until the last record.

Shards are read and hashed ahead of their records, which then come from memory; a disk that cannot read them is an error
and no SIGBUS. Records go to the threads in small groups, so that a dataset of one shard keeps all of them busy.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError, RecordError, ShardError
from lmdali.pipeline.manifest import RECORDS_FILE, SHARDS_DIRECTORY, Manifest, RecordIndex, ShardInfo, load_manifest
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.records import Record, key_prefix, parse_record
from lmdali.pipeline.shard_check import check_data_file
from lmdali.pipeline.shard_header import DATA_FILE, check_size
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_walk import iterate_values, kept_offsets_fit
from lmdali.pipeline.table_reader import ColumnReader, take_rows
from lmdali.tools.progress import progress_bar
from lmdali.tools.side_files import checked_figures, damaged_tables, manifest_problems, statistics_problems

_GROUP_RECORDS = 32
_GROUPS_AHEAD = 4
_COLUMNS = ["position", "shard", "row", "label", "stored_bytes", "crc32c"]

Columns = dict[str, list[Any]]


@dataclass
class VerifyReport:
    """What was checked and what is wrong.

    Attributes:
        num_records: records read.
        num_shards: shards checked.
        file_bytes: bytes of the shards.
        seconds: wall time.
        problems: one line each: where and what.
    """

    num_records: int = 0
    num_shards: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _BadRecord:
    """One record that is not as it was stored; `number` is that of its shard in the manifest."""

    number: int
    row: int
    key: bytes
    problem: str


@dataclass(frozen=True)
class _Group:
    """Some neighbouring records of one shard, and what the table says about them."""

    number: int
    first_row: int
    values: list[tuple[bytes, memoryview]]
    columns: Columns | None


def verify_dataset(
    directory: Path, *, decode: bool = True, workers: int | None = None, quiet: bool = False
) -> VerifyReport:
    """Check sizes, hashes, keys, places, labels and CRCs of every record, decode each, and check all other files.

    Args:
        directory: a dataset.
        decode: also decode every image; without it the check runs at disk speed.
        workers: threads; None means every CPU this process may use.
        quiet: no progress.

    Raises:
        InputError: not a finished dataset.
        ManifestError: the manifest itself cannot be trusted.
    """
    manifest = load_manifest(directory)
    start = perf_counter()
    with progress_bar("verify", manifest.num_records, quiet=quiet) as progress:
        check = _Check(directory, manifest, decode=decode, workers=workers or usable_cpus(), progress=progress)
        check.shards()
    check.side_files()
    report = check.report
    report.problems += check.named_bad_records()
    check.close()
    report.problems.sort()
    report.seconds = perf_counter() - start
    return report


class _Check:
    """One run over a dataset; only the thread that began it touches anything here."""

    def __init__(
        self, directory: Path, manifest: Manifest, *, decode: bool, workers: int, progress: Callable[[int], None]
    ) -> None:
        self._directory, self._manifest, self._decode, self._workers = directory, manifest, decode, workers
        self._progress = progress
        self._index = RecordIndex(manifest)
        self._bad: list[_BadRecord] = []
        self._labels: Counter[int] = Counter()
        self._running: deque[Future[tuple[int, Counter[int], list[_BadRecord]]]] = deque()
        self.report = VerifyReport(problems=manifest_problems(directory))
        damaged = damaged_tables(directory, manifest)
        self.report.problems += [f"{name}: {problem}" for name, problem in damaged.items()]
        self._table = ColumnReader(directory / RECORDS_FILE) if RECORDS_FILE not in damaged else None
        if self._table is not None and self._table.num_rows != manifest.num_records:
            self.report.problems.append(f"{RECORDS_FILE}: {self._table.num_rows} rows")
            self.close()
            self._table = None

    def shards(self) -> None:
        """Check all shards."""
        shards = self._manifest.shards
        with ThreadPoolExecutor(self._workers) as pool:
            hashes: deque[Future[None]] = deque()
            ahead = iter(shards)
            for number, info in enumerate(shards):
                for coming in islice(ahead, self._workers - len(hashes)):
                    hashes.append(pool.submit(check_data_file, self._shard(coming), coming))
                self._shard_records(pool, number, info, hashes.popleft())
            self._drain(0)

    def close(self) -> None:
        """Let go of the table."""
        if self._table is not None:
            self._table.close()

    def _shard(self, info: ShardInfo) -> Path:
        return self._directory / SHARDS_DIRECTORY / info.name

    def _shard_records(self, pool: ThreadPoolExecutor, number: int, info: ShardInfo, hashed: Future[None]) -> None:
        where, shard = f"shard {info.name}", self._shard(info)
        self.report.num_shards += 1
        self.report.file_bytes += info.file_bytes
        try:
            try:
                hashed.result()
            except ShardError as error:
                self.report.problems.append(f"{where}: {error}")
                # A shard of the right size can be mapped, and its damaged records be named.
                try:
                    check_size(shard / DATA_FILE, expected_bytes=info.file_bytes, expected_entries=info.num_records)
                except ShardError:
                    return
            for group in self._groups(number, info):
                self._running.append(pool.submit(_check_group, self._manifest, group, decode=self._decode))
                self._drain(_GROUPS_AHEAD * self._workers)
            if not kept_offsets_fit(shard, info):
                self.report.problems.append(
                    f"{where}: {OFFSETS_FILE} does not say what {DATA_FILE} says: delete it, loaders do without"
                )
        except LmdaliError as error:  # a damaged page ends the walk: the rest of this shard is unknown
            self.report.problems.append(f"{where}: {error}")

    def _groups(self, number: int, info: ShardInfo) -> Iterator[_Group]:
        first, columns = int(self._index.first_records[number]), None
        if self._table is not None:
            columns = self._table.read(_COLUMNS, first, first + info.num_records)
        values = iterate_values(self._shard(info))
        row = 0
        while group := list(islice(values, _GROUP_RECORDS)):
            rows = slice(row, row + len(group))
            chosen = None if columns is None else {name: column[rows] for name, column in columns.items()}
            yield _Group(number, row, group, chosen)
            row += len(group)

    def _drain(self, most: int) -> None:
        """Take results until at most so many groups are under way."""
        while len(self._running) > most:
            count, labels, bad = self._running.popleft().result()
            self.report.num_records += count
            self._labels += labels
            self._bad += bad
            self._progress(self.report.num_records)

    def side_files(self) -> None:
        """Check what lies beside the records."""
        size = self._manifest.image_size
        total: Moments | None = Moments.zero(size, size)
        for info in self._manifest.shards:
            try:
                moments = checked_figures(self._directory, self._manifest, info).moments
            except LmdaliError as error:
                self.report.problems.append(f"shard {info.name}: {error}")
                total = None
            else:
                if total is not None:
                    total.merge(moments)
        self.report.problems += statistics_problems(self._directory, self._manifest, total)
        counts = tuple(self._labels[label] for label in range(len(self._manifest.class_names)))
        if self.report.num_records == self._manifest.num_records and counts != self._manifest.class_counts:
            label = next(n for n, both in enumerate(zip(counts, self._manifest.class_counts)) if both[0] != both[1])  # noqa: B905
            self.report.problems.append(
                f"class {label}: {counts[label]} records, the manifest says {self._manifest.class_counts[label]}"
            )

    def named_bad_records(self) -> list[str]:
        """A line for each bad record, with its source where the table can be trusted."""
        sources: dict[int, str] = {}
        if self._table is not None and self._bad:
            # A damaged page may show more records than the shard has rows in the table.
            rows = {
                number: int(self._index.first_records[bad.number]) + bad.row
                for number, bad in enumerate(self._bad)
                if bad.row < self._manifest.shards[bad.number].num_records
            }
            found = take_rows(self._directory / RECORDS_FILE, ["source"], list(rows.values()))
            sources = {number: row["source"] for number, row in zip(rows, found, strict=True)}
        lines = []
        for number, bad in enumerate(self._bad):
            name = self._manifest.shards[bad.number].name
            key = bad.key.decode("utf-8", "backslashreplace")
            known = f", source {sources[number]}" if number in sources else ""
            lines.append(f"shard {name}, row {bad.row}, key {key}{known}: {bad.problem}")
        return lines


def _check_group(manifest: Manifest, group: _Group, *, decode: bool) -> tuple[int, Counter[int], list[_BadRecord]]:
    """How many records were checked, how many of each label, and those that are bad."""
    info = manifest.shards[group.number]
    labels: Counter[int] = Counter()
    bad = []
    for offset, (key, value) in enumerate(group.values):
        row = group.first_row + offset
        try:
            record = parse_record(value)
            labels[record.label] += 1
            _check_record(manifest, info, row, key, record, decode=decode)
            if group.columns is not None:
                _check_row(info, row, record, [group.columns[name][offset] for name in _COLUMNS])
        except RecordError as error:
            bad.append(_BadRecord(group.number, row, key, str(error)))
    return len(group.values), labels, bad


def _check_record(manifest: Manifest, info: ShardInfo, row: int, key: bytes, record: Record, *, decode: bool) -> None:
    if row >= info.num_records or not key.startswith(key_prefix(info.position(row))):
        raise RecordError(f"expected key {key_prefix(info.position(row)).decode()}...")
    if not 0 <= record.label < len(manifest.class_names):
        raise RecordError(f"label {record.label} is outside 0..{len(manifest.class_names) - 1}")
    if not record.is_intact:
        raise RecordError("CRC-32C of its image differs from the stored one")
    if decode:
        decode_stored(record.data, manifest.image_size)


def _check_row(info: ShardInfo, row: int, record: Record, said: list[Any]) -> None:
    """A record against its row of `records.parquet`, whose `_COLUMNS` are `said`."""
    stored = [info.position(row), info.name, row, record.label, len(record.data), record.crc32c]
    if said != stored:
        column, claim, value = next(both for both in zip(_COLUMNS, said, stored, strict=True) if both[1] != both[2])
        raise RecordError(f"{RECORDS_FILE} says {column} {claim}, stored is {value}")
