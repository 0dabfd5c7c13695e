from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import search  # benchmarks are scripts, not a package


def test_every_search_is_measured_beside_plain_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--records", "5000", "--dims", "16", "--codes", "2000", "--seconds", "0", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["search.py", *sizes])
    search.main()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {row["name"] for row in document["rows"]} - {"features: faiss"}
    assert names == {"features: plain reading", "features: exact search"} | {
        f"{bits}-bit codes: {what}" for bits in (28, 64, 256) for what in ("plain reading", "Hamming search")
    }
    assert all(row["ms"] > 0 and row["gigabytes_per_second"] > 0 for row in document["rows"])
    assert not list(tmp_path.iterdir()) and document["recall"] == []


def test_clustered_features_have_a_table_of_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--records", "3000", "--dims", "16", "--codes", "100", "--seconds", "0", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["search.py", *sizes, "--clustered"])
    monkeypatch.setattr(search, "LENGTHS", (28,))
    monkeypatch.setattr(search, "CODE_RECORDS", 500)
    search.main()
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["recall"]}
    assert rows["exact search"]["recall"] == 1.0
    assert 0 < rows["28-bit codes, NumPy"]["recall"] < 1
    assert all(row["queries_per_second"] > 0 and row["memory_bytes"] > 0 for row in rows.values())
    if find_spec("faiss") is not None:
        assert rows["faiss index"]["recall"] > 0.8
        # Only ties may be in another order.
        assert rows["28-bit codes, faiss"]["recall"] == pytest.approx(rows["28-bit codes, NumPy"]["recall"], abs=0.05)
