from __future__ import annotations

import json
import sys
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
    assert not list(tmp_path.iterdir())
