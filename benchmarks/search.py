"""What a query costs: exact search of features, the same with faiss, and Hamming search of codes, beside plain reading.

    python benchmarks/search.py [--records 100000] [--dims 4096] [--codes 1000000] [--seconds 5] [--folder DIR]

Random features (half of them zero, as after a ReLU) in float16 are written to a feature file below DIR, a temporary
folder by default: 0.8 GB for 100,000 of 4096 dimensions. Everything is in memory when it is measured. Each search is
repeated for so many seconds, at least three times; the median counts. Plain reading is an exclusive-or over the same
bytes: no search can be faster that looks at all of them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.exact_search import SEARCH_RECORDS, search_exact
from lmdali.model.faiss_search import search_faiss
from lmdali.model.features_file import Features, FeaturesPlan
from lmdali.model.features_writer import FeaturesWriter
from lmdali.model.hamming import WORD_BITS, search_hamming
from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import print_table

LENGTHS = (28, 64, 256)
NEIGHBOURS = 6
_BATCH = 4096
_CLASSES, _HIDDEN = 1000, 256


def write_random_features(directory: Path, records: int, dims: int, *, clustered: bool = False) -> Features:
    """A feature file of random numbers, half of them zero.

    Args:
        directory: gets the files.
        records: how many.
        dims: of each.
        clustered: of 1,000 classes, with most of what they vary in a few directions, as a network's are; else
            independent numbers, which nothing can compress and among which all are about equally far.
    """
    plan = FeaturesPlan(
        dataset="random",
        dataset_digest="random",
        source="random",
        source_digest="random",
        num_records=records,
        dims=dims,
        precision="float16",
        image_size=256,
        batch_size=_BATCH,
        device="cpu",
    )
    writer = FeaturesWriter(directory, plan)
    random = np.random.default_rng(0)
    scales = (1 / np.sqrt(np.arange(1, min(_HIDDEN, dims) + 1))).astype(np.float32)
    centres = random.standard_normal((_CLASSES, len(scales)), np.float32)
    mix = random.standard_normal((len(scales), dims), np.float32)
    with writer.hold(resume=False, overwrite=False):
        for start in range(0, records, _BATCH):
            count = min(_BATCH, records - start)
            if clustered:
                hidden = centres[random.integers(0, _CLASSES, count)]
                hidden = scales * (hidden + random.standard_normal(hidden.shape, np.float32))
                rows = hidden @ mix
            else:
                rows = random.standard_normal((count, dims), np.float32)
            writer.add(np.maximum(rows, 0))
        return writer.publish()


def median_seconds(work: Callable[[], object], seconds: float) -> float:
    """Of at least three runs, after one that does not count."""
    work()
    found: list[float] = []
    end = perf_counter() + seconds
    while len(found) < 3 or perf_counter() < end:
        start = perf_counter()
        work()
        found.append(perf_counter() - start)
    return median(found)


def read_words(blocks: list[NDArray[np.uint64]]) -> None:
    """Look at every byte, and do nothing else with it."""
    for block in blocks:
        np.bitwise_xor.reduce(block, axis=None)


def measure_features(features: Features, seconds: float) -> list[dict[str, Any]]:
    """Rows of the table: reading, exact search and faiss, for one query and for eight."""
    blocks = [block.reshape(-1).view(np.uint64) for block in features.blocks()]
    size = sum(block.nbytes for block in blocks)
    rows = [_row("features: plain reading", None, size, median_seconds(lambda: read_words(blocks), seconds))]
    for count in (1, 8):
        queries = features.rows(np.arange(count)).astype(np.float64)
        searches: dict[str, Callable[[], object]] = {
            "features: exact search": lambda queries=queries: search_exact(
                features.blocks(SEARCH_RECORDS), queries, NEIGHBOURS
            )
        }
        if find_spec("faiss") is not None:
            searches["features: faiss"] = lambda queries=queries: search_faiss(features, queries, NEIGHBOURS)
        rows += [_row(name, count, size, median_seconds(work, seconds)) for name, work in searches.items()]
    return rows


def measure_codes(count: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of the table: reading and Hamming search of random codes."""
    rows = []
    for bits in LENGTHS:
        words = np.random.default_rng(bits).integers(0, 2**63, (-(-bits // WORD_BITS), count), np.uint64)
        read = median_seconds(lambda words=words: read_words([words]), seconds)
        search = median_seconds(lambda words=words: search_hamming(words, words[:, :1], NEIGHBOURS), seconds)
        rows += [
            _row(f"{bits}-bit codes: plain reading", None, words.nbytes, read),
            _row(f"{bits}-bit codes: Hamming search", 1, words.nbytes, search),
        ]
    return rows


def _row(name: str, queries: int | None, size: int, seconds: float) -> dict[str, Any]:
    return {
        "name": name,
        "queries": queries,
        "ms": 1000 * seconds,
        "ms_per_query": 1000 * seconds / (queries or 1),
        "gigabytes_per_second": size / seconds / 1e9,
    }


def run(records: int, dims: int, codes: int, seconds: float, folder: Path | None) -> dict[str, Any]:
    """Measure everything; the document that `main` prints."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        features = write_random_features(Path(place) / "features", records, dims)
        rows = measure_features(features, seconds) + measure_codes(codes, seconds)
    return {
        "records": records,
        "dims": dims,
        "codes": codes,
        "rows": rows,
        "machine": machine_facts(torch.device("cpu")),
    }


def main() -> None:
    """Measure, print a table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=4096)
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    document = run(given.records, given.dims, given.codes, given.seconds, given.folder)
    print_table(
        f"{given.records:,} features of {given.dims:,} in float16, {given.codes:,} codes, {NEIGHBOURS} neighbours",
        ("", "queries at once", "ms", "ms per query", "GB/s"),
        [
            (
                row["name"],
                str(row["queries"] or ""),
                f"{row['ms']:.3g}",
                f"{row['ms_per_query']:.3g}",
                f"{row['gigabytes_per_second']:.2f}",
            )
            for row in document["rows"]
        ],
    )
    print(json.dumps(document))


if __name__ == "__main__":
    main()
