from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import BROWSER, NO_BROWSER, measure_page, show_page
from page_parts import parse_page
from swept_settings import setting, sweep_report, wide_report

from lmdali.tools.sweep_page import print_sweep, sweep_page

in_browser = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)


def test_tables_fit_into_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(wide_report())
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    text = "\n".join(lines)
    for word in ("A jpeg", "B raw", "threads", "prefetch", "batch", "decode", "123,456", "± 4%", "0.100", "12,345"):
        assert word in text, word
    for word in ("best*", "/somewhere/photos/<jpeg>", "Pareto front", "within noise", "busy & slow", "5 windows"):
        assert word in text, word


def test_what_all_settings_share_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(sweep_report(setting(900, 0.2, None, num_threads=1), setting(1000, 0.1, None)))
    text = capsys.readouterr().out
    assert "prefetch 3, batch 128, decode auto, float32 NCHW" in text
    assert "2 threads: 1,000 images/s, 0.100 ms CPU an image" in text
    print_sweep(sweep_report(setting(900, 0.2, None, num_threads=1), setting(1000, 0.1, None), target=1e6))
    assert "none reaches 1,000,000" in capsys.readouterr().out


def test_the_page_is_whole_and_says_the_best_first() -> None:
    parts = parse_page(sweep_page(wide_report()))
    assert len(parts.plots) == 3
    text = re.sub(r"\s+", " ", parts.text)
    words = ["Sweep of 8 loaders", "A jpeg, 8 threads, prefetch 1, batch 64, decode cpu", "123,456", "Pareto front:"]
    places = [text.index(word) for word in [*words, "100% (100% to 100%)", "photos/<jpeg>", "busy & slow"]]
    assert places == sorted(places)


def test_bars_are_told_apart_by_everything_that_was_swept() -> None:
    kinds = [("photos/jpeg", "jpeg", 64), ("photos/raw", "raw", 64), ("photos/jpeg", "jpeg", 128)]
    settings = [
        setting(900, 0.2, 5, dataset=home, encoding=kind, batch_size=size, num_threads=16 // number, prefetch=number)
        for number, (home, kind, size) in enumerate(kinds, 1)
    ]
    page = sweep_page(sweep_report(*settings))
    for label in (
        "1: A, -j 16, prefetch 1, -b 64<",
        "2: B, -j 8, prefetch 2, -b 64<",
        "3: A, -j 5, prefetch 3, -b 128<",
    ):
        assert label in page
    assert "…" not in page


def test_where_memory_is_not_told_there_is_no_plot_of_it() -> None:
    parts = parse_page(sweep_page(sweep_report(setting(900, 0.2, None, prefetch=1), setting(1000, 0.1, None))))
    assert len(parts.plots) == 2


def test_a_target_that_nothing_reaches_is_the_outcome() -> None:
    report = sweep_report(setting(900, 0.2, 5, prefetch=1), setting(1000, 0.1, 6), target=5000.0)
    assert "No setting reaches the target" in parse_page(sweep_page(report)).text


@in_browser
def test_a_browser_shows_everything_at_every_width(tmp_path: Path) -> None:
    page = sweep_page(wide_report())
    for found in measure_page(page, tmp_path):
        assert found["scroll"] <= found["width"], f"wider than the window: {found}"
        assert found["clipped"] == []
        assert len(found["plots"]) == 3 and min(found["plots"]) > 60
    (tmp_path / "page.html").write_text(page)
    show_page(tmp_path / "page.html", tmp_path, dark=False)
