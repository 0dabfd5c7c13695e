"""The records of several datasets under one running number, with what is known of each without reading its pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_place import Place, open_reader, place_directory, place_shown
from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.manifest import RECORDS_FILE
from lmdali.pipeline.perceptual_hash import HASH_KIND, is_blank, picture_hash
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.table_reader import has_column, read_codes, read_integers, take_rows
from lmdali.tools.progress import progress_bar

_TASK_RECORDS = 256


class RecordCatalog:
    """Records of some datasets, numbered through in the order of the datasets.

    Attributes:
        places: the datasets, as they were given.
        directories: of each with its manifest and tables.
        manifests: of each.
        first: (datasets + 1,) int64, running number of the first record of each.
        files: (n,) int64, equal where the source files are.
        labels: (n,) int64, class number in its own dataset.
        hashes: (n,) int64, perceptual hashes.
        is_blank: (n,) bool.
        was_hashed: for each dataset, whether its hashes were not in its tables and had to be computed from its pixels.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        workers: int | None = None,
        cache_dir: Place | None = None,
        cache_bytes: int | None = None,
        quiet: bool = False,
    ) -> None:
        """Read manifests and tables; where a dataset was made before hashes were kept, also its pixels.

        Args:
            places: the datasets.
            workers: threads; None means every CPU this process may use.
            cache_dir, cache_bytes: for datasets at an address, as of `LoaderConfig`.
            quiet: no progress.

        Raises:
            InputError: not a finished dataset.
            IntegrityError: a table is damaged or of another dataset; or a record is, where hashes are computed.
        """
        self.places = tuple(places)
        self.directories = [place_directory(place, tables=True, cache_dir=cache_dir) for place in self.places]
        self._readers = [open_reader(place, cache_dir=cache_dir, room_bytes=cache_bytes) for place in self.places]
        self.manifests = tuple(reader.manifest for reader in self._readers)
        self.first = np.cumsum([0, *(manifest.num_records for manifest in self.manifests)], dtype=np.int64)
        known: dict[str, int] = {}
        self.files = self._column(read_codes(path, "source_sha256", known) for path in self._tables())
        self.labels = self._column(read_integers(path, "label") for path in self._tables())
        if len(self.files) != self.first[-1]:
            raise IntegrityError(
                f"{', '.join(map(place_shown, self.places))}: {RECORDS_FILE} has {len(self.files)} rows, the manifests "
                f"name {self.first[-1]} records: run `lmdali verify`"
            )
        self.was_hashed = [not _keeps_hashes(reader) for reader in self._readers]
        looks = [self._look(reader, workers or usable_cpus(), quiet=quiet) for reader in self._readers]
        self.hashes = self._column(hashes for hashes, _ in looks)
        self.is_blank = np.concatenate([blank for _, blank in looks])

    def __len__(self) -> int:
        return int(self.first[-1])

    def dataset_of(self, number: int) -> int:
        """Number of the dataset that a record belongs to."""
        return int(np.searchsorted(self.first, number, side="right")) - 1

    def datasets_of(self, numbers: Iterable[int]) -> set[int]:
        """Numbers of the datasets that some records belong to."""
        return {self.dataset_of(number) for number in numbers}

    def locate(self, number: int) -> tuple[ShardReader, int]:
        """Reader of a record's dataset, and the record's number in it."""
        dataset = self.dataset_of(number)
        return self._readers[dataset], number - int(self.first[dataset])

    def class_name(self, number: int) -> str:
        """Class of a record."""
        return self.manifests[self.dataset_of(number)].class_names[int(self.labels[number])]

    def sources(self, numbers: Iterable[int]) -> dict[int, str]:
        """Source path of each of some records."""
        paths: dict[int, str] = {}
        wanted = np.unique(np.fromiter(numbers, np.int64))
        for dataset, path in enumerate(self._tables()):
            low, high = self.first[dataset], self.first[dataset + 1]
            here = wanted[(wanted >= low) & (wanted < high)]
            if len(here):
                rows = take_rows(path, ["source"], (here - low).tolist())
                paths.update(zip(here.tolist(), (row["source"] for row in rows), strict=True))
        return paths

    def close(self) -> None:
        """Let go of the shards."""
        for reader in self._readers:
            reader.close()

    def _tables(self) -> list[Path]:
        return [directory / RECORDS_FILE for directory in self.directories]

    @staticmethod
    def _column(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate(list(parts))

    def _look(self, reader: ShardReader, workers: int, *, quiet: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Hash of each record of a dataset, and whether it is blank."""
        if not _keeps_hashes(reader):
            return _hash_pixels(reader, workers, quiet=quiet)
        table = reader.directory / RECORDS_FILE
        names: dict[str, int] = {}
        codes = read_codes(table, "oddities", names)
        blank = [code for text, code in names.items() if "blank" in text.split(",")]
        return read_integers(table, "phash"), np.isin(codes, blank)


def _keeps_hashes(reader: ShardReader) -> bool:
    """Whether a dataset's table has hashes, of the kind that is compared here."""
    has_kind = reader.manifest.recipe.get("perceptual_hash") == HASH_KIND
    return has_kind and has_column(reader.directory / RECORDS_FILE, "phash")


def _hash_pixels(reader: ShardReader, workers: int, *, quiet: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    count, size = reader.manifest.num_records, reader.manifest.image_size
    hashes, blank = np.zeros(count, np.int64), np.zeros(count, np.bool_)

    def look(first: int) -> int:
        past = min(first + _TASK_RECORDS, count)
        for index in range(first, past):
            pixels = reader.read(index, lambda record: decode_stored(record.data, size))
            hashes[index], blank[index] = picture_hash(pixels), is_blank(pixels)
        return past

    with progress_bar("hash", count, quiet=quiet) as progress, ThreadPoolExecutor(workers) as pool:
        for past in pool.map(look, range(0, count, _TASK_RECORDS)):
            progress(past)
    return hashes, blank
