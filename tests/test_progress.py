from __future__ import annotations

import pytest

from lmdali.tools import progress
from lmdali.tools.progress import progress_bar


def test_what_an_earlier_run_did_counts_as_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_PLAIN_INTERVAL_SECONDS", 0.0)
    with progress_bar("convert", 10, before=3) as told:
        told(2)
    assert "convert: 5/10 images" in capsys.readouterr().err
    with progress_bar("convert", 10, before=3, quiet=True) as told:
        told(2)
    assert capsys.readouterr().err == ""


def test_what_an_earlier_run_did_does_not_count_for_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([100.0, 120.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(times))
    with progress_bar("convert", 10_000, before=8000) as told:
        told(1000)
    assert capsys.readouterr().err == "convert: 9000/10000 images, 50 images/s, 20 s left\n"
