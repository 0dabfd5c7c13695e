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
