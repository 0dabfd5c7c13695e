from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from feature_files import write_features

from lmdali.model.exact_search import search_exact
from lmdali.model.faiss_search import search_faiss
from lmdali.pipeline.errors import ConfigError, InputError, MissingExtraError


def test_it_agrees_with_the_exact_search(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is the extra 'faiss'")
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


def test_faiss_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = write_features(tmp_path / "f", np.ones((2, 3)))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmdali\[faiss\]'"):
        search_faiss(features, np.zeros((1, 3)), 1)
