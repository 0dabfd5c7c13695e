"""What a query costs: exact search of features, the same with faiss, and Hamming search of codes, beside plain reading.

    python benchmarks/search.py [--records 100000] [--dims 4096] [--codes 1000000] [--seconds 5] [--folder DIR]

Random features (half of them zero, as after a ReLU) in float16 are written to a feature file below DIR, a temporary
folder by default: 0.8 GB for 100,000 of 4096 dimensions. Everything is in memory when it is measured. Each search is
repeated for so many seconds, at least three times; the median counts. Plain reading is an exclusive-or over the same
bytes: no search can be faster that looks at all of them. With --clustered, features have classes and vary in few
directions, and a second table has what each way to search costs to build, and how many of the exact neighbours it
finds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.code_network import CodeConfig, encode_features, train_code_network
from lmdali.model.code_quality import precision_at_k
from lmdali.model.exact_search import SEARCH_RECORDS, Neighbours, search_exact
from lmdali.model.faiss_index import open_index
from lmdali.model.faiss_search import search_faiss, search_index
from lmdali.model.features_file import INDEX_FILE, Features, FeaturesPlan
from lmdali.model.features_writer import FeaturesWriter
from lmdali.model.hamming import WORD_BITS, pack_codes, search_hamming
from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import print_table

LENGTHS = (28, 64, 256)
NEIGHBOURS = 10
QUERIES = 64  # whose recall is measured
CODE_RECORDS = 20_000  # that encoders are trained on
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
    random = np.random.default_rng(0)
    scales = (1 / np.sqrt(np.arange(1, min(_HIDDEN, dims) + 1))).astype(np.float32)
    centres = random.standard_normal((_CLASSES, len(scales)), np.float32)
    mix = random.standard_normal((len(scales), dims), np.float32)

    def rows() -> Iterator[NDArray[np.float32]]:
        for start in range(0, records, _BATCH):
            count = min(_BATCH, records - start)
            if clustered:
                hidden = centres[random.integers(0, _CLASSES, count)]
                yield np.maximum((scales * (hidden + random.standard_normal(hidden.shape, np.float32))) @ mix, 0)
            else:
                yield np.maximum(random.standard_normal((count, dims), np.float32), 0)

    return write_features(directory, rows(), records, dims)


def write_features(directory: Path, batches: Iterator[NDArray[np.float32]], records: int, dims: int) -> Features:
    """A feature file in float16 of rows that come in batches."""
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
    with writer.hold(resume=False, overwrite=False):
        for batch in batches:
            for start in range(0, len(batch), _BATCH):
                writer.add(batch[start : start + _BATCH])
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


def measure_recall(features: Features, folder: Path) -> list[dict[str, Any]]:
    """Rows of the second table: building, memory, queries by themselves, and what each way to search finds."""
    places = np.linspace(0, len(features) - 1, QUERIES).astype(np.int64)
    queries = features.rows(places).astype(np.float64)
    exact = search_exact(features.blocks(SEARCH_RECORDS), queries, NEIGHBOURS + 1).without(places, NEIGHBOURS).indices

    def row(name: str, build: float, memory: int, search: Callable[[slice], Neighbours]) -> dict[str, Any]:
        found = search(slice(None)).without(places, NEIGHBOURS)
        one = median_seconds(lambda: search(slice(0, 1)), 1)
        return {
            "name": name,
            "build_seconds": build,
            "memory_bytes": memory,
            "queries_per_second": 1 / one,
            "recall": precision_at_k(found.indices, exact),
        }

    bytes_read = len(features) * features.plan.dims * 2
    rows = [
        row(
            "exact search",
            0.0,
            bytes_read,
            lambda part: search_exact(features.blocks(SEARCH_RECORDS), queries[part], NEIGHBOURS + 1),
        )
    ]
    if find_spec("faiss") is not None:
        import faiss

        start = perf_counter()
        open_index(faiss, features)
        built, size = perf_counter() - start, (features.directory / INDEX_FILE).stat().st_size
        index = open_index(faiss, features)
        rows.append(
            row("faiss index", built, size, lambda part: search_index(features, index, queries[part], NEIGHBOURS + 1))
        )
    return rows + [found for bits in LENGTHS for found in _code_rows(features, folder, bits, places, row)]


def _code_rows(
    features: Features, folder: Path, bits: int, places: NDArray[np.int64], row: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    start = perf_counter()
    some = np.linspace(0, len(features) - 1, min(len(features), CODE_RECORDS)).astype(np.int64)
    sample = write_features(folder / f"sample-{bits}", iter([features.rows(some)]), len(some), features.plan.dims)
    network, _ = train_code_network(sample, CodeConfig(bits=bits, epochs=2))
    codes = encode_features(network, features)
    built = perf_counter() - start
    words = pack_codes(codes)
    rows = [
        row(
            f"{bits}-bit codes, NumPy",
            built,
            words.nbytes,
            lambda part: search_hamming(words, np.ascontiguousarray(words[:, places[part]]), NEIGHBOURS + 1),
        )
    ]
    if find_spec("faiss") is not None:
        import faiss

        packed = np.packbits(np.pad(codes, ((0, 0), (0, -bits % 8))), axis=1)
        index = faiss.IndexBinaryFlat(8 * packed.shape[1])
        index.add(packed)
        rows.append(
            row(f"{bits}-bit codes, faiss", built, packed.nbytes, lambda part: _binary(index, packed[places[part]]))
        )
    return rows


def _binary(index: Any, queries: NDArray[np.uint8]) -> Neighbours:
    distances, indices = index.search(queries, NEIGHBOURS + 1)
    return Neighbours(indices.astype(np.int64), distances)


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


def run(records: int, dims: int, codes: int, seconds: float, folder: Path | None, *, clustered: bool) -> dict[str, Any]:
    """Measure everything; the document that `main` prints."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        features = write_random_features(Path(place) / "features", records, dims, clustered=clustered)
        # First, because it times the building of the index that the others then find beside the features.
        recall = measure_recall(features, Path(place)) if clustered else []
        rows = measure_features(features, seconds) + measure_codes(codes, seconds)
    return {
        "records": records,
        "dims": dims,
        "codes": codes,
        "rows": rows,
        "recall": recall,
        "machine": machine_facts(torch.device("cpu")),
    }


def main() -> None:
    """Measure, print tables, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=4096)
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--clustered", action="store_true")
    given = parser.parse_args()
    document = run(**vars(given))
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
    if document["recall"]:
        print_table(
            f"the same features, {QUERIES} queries",
            ("", "built in, s", "memory, MB", "queries/s", f"recall@{NEIGHBOURS}"),
            [
                (
                    row["name"],
                    f"{row['build_seconds']:.0f}",
                    f"{row['memory_bytes'] / 1e6:,.1f}",
                    f"{row['queries_per_second']:.3g}",
                    f"{row['recall']:.3f}",
                )
                for row in document["recall"]
            ],
        )
    print(json.dumps(document))


if __name__ == "__main__":
    main()
