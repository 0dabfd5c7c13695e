from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_files import codes_info, write_features

from lmdali.model.code_quality import measure_codes, measure_exact, precision_at_k
from lmdali.model.codes_file import save_codes

LINE = np.array([[0.0], [1.0], [3.0], [6.0], [10.0]])
LABELS = np.array([0, 0, 1, 1, 0])


def test_precision_by_hand() -> None:
    found, wanted = np.array([[1, 2, 3], [7, 8, 9]]), np.array([[3, 5, 1], [1, 2, 3]])
    assert precision_at_k(found, wanted) == pytest.approx((2 / 3 + 0) / 2)
    assert precision_at_k(found[:, :2], wanted) == pytest.approx((1 / 3 + 0) / 2)  # a search that found fewer


def test_exact_search_is_its_own_measure(tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", LINE)
    found, quality = measure_exact(features, np.array([1, 4]), 2, LABELS)
    assert found.indices.tolist() == [[0, 2], [3, 2]]
    assert (quality.precision, quality.label_precision, quality.bits) == (1.0, 0.25, None)
    assert quality.class_precision == (0.25, None)
    assert quality.bytes_per_record == 4 and quality.ms_per_query > 0


def test_codes_beside_it(tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", LINE)
    bits = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]], np.bool_)
    codes = save_codes(tmp_path / "c", bits, codes_info(bits=3, num_records=5))
    queries = np.array([1, 4])
    exact, _ = measure_exact(features, queries, 2, LABELS)
    quality = measure_codes(codes, queries, exact, LABELS, from_pixels=True)
    # Record 1: code 4 is equal, then 0 and 3 one bit away: 4 and 0. Record 4: 1, then 0.
    assert quality.precision == pytest.approx((1 / 2 + 0) / 2)
    assert quality.label_precision == 1.0
    assert (quality.name, quality.bits, quality.bytes_per_record) == ("3-bit codes of pixels", 3, 8.0)
