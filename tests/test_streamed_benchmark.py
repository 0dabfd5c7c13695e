"""The streaming benchmark: its server, and its medians."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import streamed  # benchmarks are scripts, not a package
from file_server import COUNTS_PATH, FileServer, Line

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "object").write_bytes(CONTENT)
    server = FileServer(tmp_path, Line(bytes_per_second=1e9))
    threading.Thread(target=server.serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"


def ask(address: str, method: str = "GET", **headers: str) -> tuple[int, bytes, str]:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers, method=method)) as answer:
        return answer.status, answer.read(), answer.headers["Content-Length"]


def test_the_server_sends_files_ranges_and_what_it_counted(address: str) -> None:
    size = str(len(CONTENT))
    assert ask(f"{address}/bucket/object") == (200, CONTENT, size)
    assert ask(f"{address}/bucket/object", "HEAD") == (200, b"", size)
    assert ask(f"{address}/bucket/object", Range="bytes=5-9") == (206, CONTENT[5:10], "5")
    assert ask(f"{address}/bucket/object", Range="bytes=10000-") == (206, CONTENT[10000:], "240")
    for path in ("/bucket/none", "/bucket/../bucket/object"):
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            ask(address + path)
        refused.value.close()
    counts = json.loads(ask(address + COUNTS_PATH)[1])
    assert (counts["requests"], counts["sent_bytes"]) == (6, len(CONTENT) + 5 + 240)


def test_rounds_become_medians_and_ratios_to_local_files_of_the_same_round() -> None:
    def run(rate: float) -> dict[str, Any]:
        return {
            "images_per_second": rate,
            "steady_images_per_second": 2 * rate,
            "waiting_share": None,
            "second": {"images_per_second": 7.0},
        }

    local, remote = [run(100), run(200), run(50)], [run(50), run(160) | {"sent_bytes": 30}, {"error": "gone"}]
    rows = streamed.summarize({"local": local, "0 ms": remote}, num_records=10)
    assert rows["local"]["images_per_second"] == 100 and rows["local"]["ratio"] == 1
    assert rows["0 ms"]["ratio"] == pytest.approx((0.5 + 0.8) / 2)
    assert (rows["0 ms"]["failures"], rows["0 ms"]["error"]) == (1, "gone")
    assert rows["0 ms"]["second_images_per_second"] == 7 and "waiting_share" not in rows["0 ms"]
