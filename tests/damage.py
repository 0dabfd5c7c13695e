"""Flips bits of a dataset's shards and reads them; a process of its own, for what could go wrong is a crash.

`python damage.py DATASET COUNT SEED WHAT` with WHAT `values`, `structure`, `loader` or `lengths`; it prints one JSON
object with what was counted. `wrong` must be 0: records that were delivered and are not those that were stored.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from lmdali.pipeline.errors import IntegrityError, LmdaliError, RecordError, ShardError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.records import Record
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_walk import iterate_lmdb
from lmdali.tools.verify import verify_dataset

VERIFY_EVERY = 10


def keep(record: Record) -> tuple[bytes, int]:
    """What must be right of a record."""
    return bytes(record.data), record.label


class Damage:
    """One dataset that is harmed and healed again and again."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.dice, self.counts = directory, random.Random(seed), Counter[str]()
        self.reader = self.fresh()
        self.right = [self.reader.read(index, keep) for index in range(self.reader.index.num_records)]

    def fresh(self) -> ShardReader:
        """A reader that has seen nothing."""
        return ShardReader(self.directory, load_manifest(self.directory))

    def flip(self, path: Path, offset: int, bit: int) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))

    def bit_of_a_value(self) -> tuple[int, Path, int, int]:
        """A record, and the file, the byte in it and the bit of that byte, somewhere in its value."""
        index = self.dice.randrange(len(self.right))
        place = self.reader.file_places(np.array([index]))
        path = self.reader.data_file(self.reader.manifest.shards[place.shards[0]].name)
        offset = int(place.offsets[0]) + self.dice.randrange(int(place.sizes[0]))
        return index, path, offset, self.dice.randrange(8)

    def verify(self, number: int) -> None:
        if number % VERIFY_EVERY == 0:
            self.counts["verified"] += 1
            self.counts["not found"] += not verify_dataset(self.directory, decode=False, workers=1, quiet=True).problems

    def values(self, count: int) -> None:
        """Bits of values: the record is refused by name, or it is right."""
        self.counts["flips"] = count
        for number in range(count):
            index, path, offset, bit = self.bit_of_a_value()
            self.flip(path, offset, bit)
            try:
                self.counts["wrong"] += self.reader.read(index, keep) != self.right[index]
                self.counts["harmless"] += 1
            except RecordError as error:
                self.counts["refused"] += 1
                self.counts["unnamed"] += not (str(path) in str(error) and f"record {index}," in str(error))
            self.verify(number)
            self.flip(path, offset, bit)

    def structure(self, count: int) -> None:
        """Bits of meta pages, page headers and nodes, half of the time without `offsets.npy`."""
        self.counts["flips"] = count
        infos = self.reader.manifest.shards
        for number in range(count):
            info = infos[number % len(infos)]
            path = self.reader.data_file(info.name)
            page = self.dice.choice((0, 0, 1, 1, *range(2, info.file_bytes // 4096)))
            offset, bit = page * 4096 + self.dice.randrange(200 if page < 2 else 64), self.dice.randrange(8)
            kept = path.with_name(OFFSETS_FILE)
            aside = kept.rename(path.with_name("aside")) if number % 2 else None
            self.flip(path, offset, bit)
            reader = self.fresh()
            first = int(reader.index.first_records[number % len(infos)])
            for index in range(first, first + info.num_records):
                try:
                    self.counts["wrong"] += reader.read(index, keep) != self.right[index]
                    self.counts["harmless"] += 1
                except LmdaliError as error:
                    self.counts["refused"] += 1
                    self.counts["unnamed"] += str(path) not in str(error)
            try:
                for row, (_, record) in enumerate(iterate_lmdb(path.parent)):
                    # Without the manifest only the record's own checksum can tell.
                    self.counts["wrong"] += record.is_intact and keep(record) not in self.right
                    self.counts["walked"] += row == 0
            except IntegrityError:
                self.counts["not walked"] += 1
            if aside:
                aside.rename(kept)
            self.verify(number)
            self.flip(path, offset, bit)

    def loader(self, count: int) -> None:
        """Bits of values, read by a loader on the CPU: an error that names the record, or the same batch."""
        from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader

        self.counts["flips"] = count
        size = self.reader.manifest.image_size
        augment = AugmentConfig(crop_size=size, crop="center", flip=False, normalize="none", lighting="none")
        config = LoaderConfig(
            dataset=self.directory, batch_size=len(self.right), order="sequential", augment=augment, num_threads=1
        )
        with create_loader(config) as loader:
            right = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
        for _ in range(count):
            index, path, offset, bit = self.bit_of_a_value()
            self.flip(path, offset, bit)
            try:
                with create_loader(config) as loader:
                    for (images, labels), (images_before, labels_before) in zip(loader, right, strict=True):
                        self.counts["wrong"] += not (
                            np.array_equal(images.numpy(), images_before)
                            and np.array_equal(labels.numpy(), labels_before)
                        )
                self.counts["harmless"] += 1
            except RecordError as error:
                self.counts["refused"] += 1
                self.counts["unnamed"] += not (str(path) in str(error) and f"record {index}," in str(error))
            self.flip(path, offset, bit)

    def lengths(self, step: int) -> None:
        """Files cut off or extended: refused before they are mapped, or the kernel would end this process."""
        path = self.reader.data_file(self.reader.manifest.shards[0].name)
        whole = path.read_bytes()
        self.reader.close()
        edges = {edge + near for edge in range(0, len(whole) + 1, 4096) for near in (-1, 0, 1)}
        lengths = {*edges, *range(0, len(whole), step), 2 * len(whole), len(whole) + 1} - {-1, len(whole)}
        path.write_bytes(whole + whole)
        for length in sorted(lengths, reverse=True):
            os.truncate(path, length)
            self.counts["lengths"] += 1
            for reader in (self.fresh(), self.reader):
                try:
                    reader.read(0, keep)
                    self.counts["wrong"] += 1
                except ShardError as error:
                    self.counts["unnamed"] += str(path) not in str(error)
            try:
                found = [record.is_intact for _, record in iterate_lmdb(path.parent)]
                self.counts["wrong"] += length < len(whole) or not all(found)
            except ShardError:
                self.counts["not walked"] += 1
        path.write_bytes(whole)
        self.counts["wrong"] += self.fresh().read(0, keep) != self.right[0]


def main() -> None:
    """Harm and count."""
    directory, count, seed, what = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    damage = Damage(directory, seed)
    getattr(damage, what)(count)
    print(json.dumps(damage.counts))


if __name__ == "__main__":
    main()
