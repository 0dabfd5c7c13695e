"""faiss, scanning and with an index, beside the exact search."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_files import write_features

from lmdali.model import faiss_index
from lmdali.model.exact_search import search_exact
from lmdali.model.faiss_index import IndexPlan
from lmdali.model.faiss_search import search_faiss
from lmdali.model.features_file import INDEX_FILE, Features, load_features
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, MissingExtraError, StorageError

needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is the extra 'faiss': pip install '.[dev]'")


@needs_faiss
def test_it_agrees_with_the_exact_search(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(9000, 24)).astype(np.float32)
    rows[20:25] = rows[8999]
    features = write_features(tmp_path / "f", rows, precision="float16")
    queries = features.rows(np.array([8999, 3])).astype(np.float64)
    for k in (1, 7, 9000):
        found, wanted = search_faiss(features, queries, k), search_exact(features.blocks(), queries, k)
        assert (found.indices == wanted.indices).all()
        assert (found.distances == wanted.distances).all()
    with pytest.raises(ConfigError, match="at least 1"):
        search_faiss(features, queries, 0)
    with pytest.raises(InputError, match="no query"):
        search_faiss(features, queries[:0], 1)


@pytest.fixture(scope="module", autouse=True)
def one_faiss_thread() -> Iterator[None]:
    """Threads of k-means, and those of its BLAS, that wait for each other make a busy machine's seconds minutes."""
    if find_spec("faiss") is None:
        yield
        return
    import faiss

    before = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 1 << 30
    yield
    faiss.omp_set_num_threads(before[0])
    faiss.cvar.distance_compute_blas_threshold = before[1]


@pytest.fixture
def clustered(tmp_path: Path) -> Features:
    """3,000 records in 60 clusters of 8 dimensions; each test has its own, without an index."""
    random = np.random.default_rng(1)
    rows = 5 * random.normal(size=(60, 8))[np.arange(3000) % 60] + random.normal(size=(3000, 8))
    return write_features(tmp_path / "clustered", rows, precision="float16")


def never(*_: Any) -> None:
    raise AssertionError("built again")


@needs_faiss
def test_an_index_is_built_once_and_its_candidates_are_measured_again(
    clustered: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = clustered.rows(np.arange(0, 3000, 100)).astype(np.float64)
    told: list[int] = []
    found = search_faiss(clustered, queries, 10, scan_records=0, on_progress=told.append)
    assert told[-1] == 3000
    monkeypatch.setattr(faiss_index, "build_index", never)
    again = search_faiss(clustered, queries, 10, scan_records=0)
    assert (again.indices == found.indices).all()
    wanted = search_exact(clustered.blocks(), queries, 10)
    assert (found.indices == wanted.indices).mean() > 0.95  # 0.999 when this was written
    same = found.indices == wanted.indices
    assert (found.distances[same] == wanted.distances[same]).all()
    assert (np.diff(found.distances, axis=1) >= 0).all()


@needs_faiss
def test_an_index_of_other_features_is_built_again_and_a_damaged_one_refused(
    clustered: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_features(tmp_path / "f", clustered.rows(np.arange(2700)))
    queries = other.rows(np.array([3])).astype(np.float64)
    search_faiss(clustered, queries, 1, scan_records=0)
    index = (clustered.directory / INDEX_FILE).read_bytes()
    (other.directory / INDEX_FILE).write_bytes(index)
    assert search_faiss(other, queries, 1, scan_records=0).indices.tolist() == [[3]]
    assert (other.directory / INDEX_FILE).read_bytes() != index
    monkeypatch.setattr(faiss_index, "build_index", never)
    for damaged in (index[:-1], b"", b"[]\n" + index):
        (other.directory / INDEX_FILE).write_bytes(damaged)
        with pytest.raises(IntegrityError, match="remove it, and the next search makes it again"):
            search_faiss(other, queries, 1, scan_records=0)


@needs_faiss
def test_a_folder_that_takes_no_index_is_refused_before_it_is_built(
    clustered: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = write_features(tmp_path / "f", clustered.rows(np.arange(2700)))
    query = features.rows(np.array([3])).astype(np.float64)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(faiss_index, "build_index", never)
        patched.setattr(tempfile, "TemporaryFile", refuse)
        with pytest.raises(StorageError, match="Read-only file system"):
            search_faiss(features, query, 1, scan_records=0)
    assert search_faiss(features, query, 1, scan_records=0).indices.tolist() == [[3]]
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert search_faiss(features, query, 1, scan_records=0).indices.tolist() == [[3]], "it is only read"


@needs_faiss
@pytest.mark.parametrize("scan_records", [0, 10_000])
def test_what_is_not_finite_is_named(tmp_path: Path, scan_records: int) -> None:
    features = write_features(tmp_path / "f", np.random.default_rng(2).normal(size=(300, 4)))
    damaged = np.load(features.directory / "shards" / "00000.npy", mmap_mode="r+")
    damaged[255, 1] = np.nan
    damaged.flush()
    features = load_features(features.directory)
    with pytest.raises(InputError, match="record 255: its features are not finite"):
        search_faiss(features, np.zeros((1, 4)), 1, scan_records=scan_records)


@pytest.mark.parametrize(
    ("size", "recipe", "training", "probes"),
    [
        ((1_000_000, 4096), "PCAR256,IVF512,PQ64np", 20_480, 64),
        ((100_001, 4096), "PCAR256,IVF256,PQ64np", 10_240, 32),
        ((14_197_122, 4096), "PCAR256,IVF2048,PQ64np", 81_920, 256),
        ((3000, 6), "PCAR4,IVF32,PQ1np", 3000, 4),
    ],
)
def test_the_plan_follows_from_the_size(size: tuple[int, int], recipe: str, training: int, probes: int) -> None:
    assert IndexPlan.of(*size) == IndexPlan(recipe=recipe, training_records=training, probes=probes)


def test_faiss_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = write_features(tmp_path / "f", np.ones((2, 3)))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmdali\[faiss\]'"):
        search_faiss(features, np.zeros((1, 3)), 1)
