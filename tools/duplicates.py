"""Which records of some datasets show the same picture: the same file, the same stored bytes, nearly so, or mirrored.

Near pictures are proposed by their perceptual hashes and confirmed by their stored pixels. The limits were measured on
1,801 photographs (360 of ImageNet, 1,441 of clothing) and changed copies of each, at 256 pixels: of re-encoded (quality
50 and 85), resized (0.5 and 1.5) and lightened (by 10 levels, by 10 %) copies 99.9 % and more are found, of those
lightened by 40 levels or by 20 % 98.9 % (on 841 of the photographs), of mirrored ones 94 %, of copies cut to the
central 95 % of each side half, of those cut at two sides hardly any. None of the 1.6 million pairs of different
photographs is taken for a duplicate, mirrored or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.records import Record
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.hash_search import near_hashes
from lmdali.tools.progress import progress_bar
from lmdali.tools.record_catalog import RecordCatalog

Kind = Literal["same_file", "same_pixels", "near", "mirrored"]
KINDS: tuple[Kind, ...] = ("same_file", "same_pixels", "near", "mirrored")

DISTANCE = 7
"""Bits. Changed copies lie within it as said above; of 1.6 million unrelated pairs, one does."""

MIN_CORRELATION = 0.95
"""Of thumbnails. Within 8 bits one unrelated pair reaches 0.97, within 7 bits the best has 0.84."""

MAX_DIFFERENCE = 20.0
"""Gray levels, mean of the absolute differences of thumbnails of the same mean. It tells apart a scene and itself at a
fraction of its contrast, which hash and correlation do not see; 99 % of pictures lightened by 20 % and 94 % of those
darkened by 30 % are below."""

_THUMBNAIL_SIDE = 16
"""At 64 x 64, a copy cut to its central 95 % correlates no better than an unrelated picture of the same kind."""

_MAX_MEMBERS = 32
"""Pictures of equal hash are compared each with each up to so many; of more, all with the first and with the one before
them: a thousand frames of one camera would be half a million pairs."""

_TASK_PAIRS = 64


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two records that show the same picture, by their numbers in the catalogue.

    Attributes:
        first, second: numbers, first < second.
        kind: how they are the same.
        hash_distance: bits; for "mirrored" after mirroring one of them.
        difference: mean absolute difference of thumbnails of the same mean, gray levels.
        correlation: of thumbnails.
    """

    first: int
    second: int
    kind: Kind
    hash_distance: int = 0
    difference: float = 0.0
    correlation: float = 1.0


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Attributes:
        pairs: confirmed pairs, sorted. Of a group of the same file only the pairs with its first record are listed.
        groups: connected components, each a sorted tuple of numbers in the catalogue; those that span datasets first.
        num_candidates: pairs whose hashes were near.
        num_crowded: records that a part of the search left out, see `HashPairs.crowded`.
    """

    pairs: list[DuplicatePair] = field(default_factory=list)
    groups: list[tuple[int, ...]] = field(default_factory=list)
    num_candidates: int = 0
    num_crowded: int = 0


def find_duplicates(
    catalog: RecordCatalog, *, distance: int = DISTANCE, mirrored: bool = True, workers: int | None = None,
    quiet: bool = False,
) -> Duplicates:  # fmt: skip
    """Find the records that show the same picture.

    Blank pictures are compared by their files only: they all look alike, and are reported as what they are.

    Args:
        catalog: the datasets.
        distance: bits that the hashes of near pictures may differ in, 0 to `MAX_DISTANCE`.
        mirrored: look for mirrored copies too.
        workers: threads; None means every CPU this process may use.
        quiet: no progress.

    Raises:
        RecordError: a record to compare is damaged.
    """
    exact, is_copy = _same_files(catalog)
    left = np.flatnonzero(~is_copy & ~catalog.is_blank)
    candidates, crowded = _candidates(left, catalog.hashes[left], distance, mirrored=mirrored)
    confirmed = list(_confirm(catalog, candidates, workers or usable_cpus(), quiet=quiet))
    pairs = sorted([*exact, *confirmed], key=lambda pair: (pair.first, pair.second))
    groups = sorted(connected_groups(pairs), key=lambda group: (len(catalog.datasets_of(group)) == 1, group))
    return Duplicates(pairs, groups, len(candidates), crowded)


def connected_groups(pairs: Sequence[DuplicatePair]) -> list[tuple[int, ...]]:
    """Sets of records linked by pairs, directly or through others; each sorted."""
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        while (above := parent.setdefault(number, number)) != number:
            parent[number] = number = parent[above]
        return number

    for pair in pairs:
        one, other = sorted((root(pair.first), root(pair.second)))
        parent[other] = one
    members: dict[int, list[int]] = {}
    for number in sorted(parent):
        members.setdefault(root(number), []).append(number)
    return [tuple(group) for group in members.values()]


def _same_files(catalog: RecordCatalog) -> tuple[list[DuplicatePair], NDArray[np.bool_]]:
    """Pairs of the same source file with the first of its kind, and which records are such a copy."""
    _, first_of_kind, kind = np.unique(catalog.files, return_index=True, return_inverse=True)
    first = first_of_kind[kind]
    is_copy = first != np.arange(len(first))
    copies = np.flatnonzero(is_copy)
    return [DuplicatePair(int(first[number]), int(number), "same_file") for number in copies], is_copy


def _candidates(
    numbers: NDArray[np.int64], hashes: NDArray[np.int64], distance: int, *, mirrored: bool
) -> tuple[list[tuple[int, int, int, bool]], int]:
    """(first, second, hash distance, mirrored) of records whose hashes are near, and how many were left out."""
    different, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    members = np.split(numbers[np.argsort(inverse, kind="stable")], np.cumsum(counts)[:-1])
    found = [
        (first, second, 0, False)
        for place in np.flatnonzero(counts > 1)
        for first, second in _pairs_within(members[place].tolist())
    ]
    near = near_hashes(different, distance, mirrored=mirrored)
    rows = zip(near.left, near.right, near.distance.tolist(), near.mirrored.tolist(), strict=True)
    for left, right, bits, is_mirrored in rows:
        for first in members[left].tolist():
            # Many of one hash are linked to each other already: one of them stands for all.
            for second in members[right].tolist() if counts[right] <= _MAX_MEMBERS else members[right][:1].tolist():
                found.append((min(first, second), max(first, second), bits, is_mirrored))
            if counts[left] > _MAX_MEMBERS:
                break
    return sorted(found), near.crowded


def _pairs_within(members: list[int]) -> Iterator[tuple[int, int]]:
    for place, second in enumerate(members):
        firsts = members[:place] if len(members) <= _MAX_MEMBERS else {members[0], members[max(place - 1, 0)]}
        yield from ((first, second) for first in firsts if first != second)


def _confirm(
    catalog: RecordCatalog, candidates: list[tuple[int, int, int, bool]], workers: int, *, quiet: bool
) -> Iterator[DuplicatePair]:
    """Those of the candidates whose stored pixels agree; the work of threads, in order."""
    tasks = [candidates[at : at + _TASK_PAIRS] for at in range(0, len(candidates), _TASK_PAIRS)]
    done = 0
    with (
        progress_bar("compare", len(candidates), unit="pairs", quiet=quiet) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        for task, pairs in zip(tasks, pool.map(lambda task: _compare(catalog, task), tasks), strict=True):
            yield from pairs
            done += len(task)
            progress(done)


def _compare(catalog: RecordCatalog, candidates: list[tuple[int, int, int, bool]]) -> list[DuplicatePair]:
    seen: dict[int, tuple[bytes, NDArray[np.float32]]] = {}

    def look(number: int) -> tuple[bytes, NDArray[np.float32]]:
        if number not in seen:
            reader, index = catalog.locate(number)
            seen[number] = reader.read(index, lambda record: (bytes(record.data), _thumbnail(record, reader)))
        return seen[number]

    pairs = []
    for first, second, bits, is_mirrored in candidates:
        (data, one), (other_data, other) = look(first), look(second)
        if data == other_data:
            pairs.append(DuplicatePair(first, second, "same_pixels"))
            continue
        difference, correlation = compare_thumbnails(one, other[:, ::-1] if is_mirrored else other)
        if difference <= MAX_DIFFERENCE and correlation >= MIN_CORRELATION:
            kind: Kind = "mirrored" if is_mirrored else "near"
            pairs.append(DuplicatePair(first, second, kind, bits, difference, correlation))
    return pairs


def _thumbnail(record: Record, reader: ShardReader) -> NDArray[np.float32]:
    return thumbnail(decode_stored(record.data, reader.manifest.image_size))


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(16, 16) float32 gray levels of an (H, W, 3) picture."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.resize(gray, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def compare_thumbnails(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[float, float]:
    """(mean absolute difference in gray levels, correlation), once each has the mean 0: more light is no difference.

    The correlation with a picture of one level is 0.
    """
    one, other = one - one.mean(), other - other.mean()
    difference = float(np.abs(one - other).mean())
    scale = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return difference, float((one * other).sum()) / scale if scale > 0 else 0.0
