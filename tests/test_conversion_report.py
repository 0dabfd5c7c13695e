"""What people read of a conversion: which files were not stored, and what may have gone unseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.conversion_report import ConvertSummary, report_summary, summarize
from lmdali.tools.sources import Source, open_source


@pytest.fixture(scope="module")
def summary(jpeg_dataset: Path) -> ConvertSummary:
    return summarize(jpeg_dataset, 1.0, [])


def shown(summary: ConvertSummary, source: Source, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    report_summary(summary, source, "out", as_json=False)
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {name.strip(): text.strip() for name, text in rows}


def test_a_summary_is_that_of_the_manifest(summary: ConvertSummary, jpeg_dataset: Path) -> None:
    manifest = load_manifest(jpeg_dataset)
    assert (summary.num_stored, summary.num_rejected) == (manifest.num_records, manifest.num_rejected)
    assert summary.orientation == manifest.recipe["orientation"] == "ignore"
    assert len(summary.rejected_sources) == min(3, sum(summary.rejected.values()))


def test_the_first_rejects_are_named(
    summary: ConvertSummary, small_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(small_source)
    few = replace(summary, num_rejected=2, rejected={"empty": 2}, rejected_sources=("a/1.jpg", "b/2.jpg"))
    assert shown(few, source, capsys)["rejected"] == "2 empty: a/1.jpg, b/2.jpg"
    many = replace(few, num_rejected=9, rejected={"empty": 9}, rejected_sources=("a", "b", "c"))
    assert shown(many, source, capsys)["rejected"] == "9 empty: a, b, c, ..."
    assert shown(replace(few, num_rejected=0, rejected={}), source, capsys)["rejected"] == "none"


def test_pictures_that_were_not_turned_are_told_with_the_option_that_turns_them(
    summary: ConvertSummary, small_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(small_source)
    tagged = replace(summary, oddities={"orientation_tag": 4}, orientation="ignore")
    assert shown(tagged, source, capsys)["not turned"] == "4 with an orientation tag; --orientation apply turns them"
    assert "not turned" not in shown(replace(tagged, orientation="apply"), source, capsys)
    assert "not turned" not in shown(replace(tagged, oddities={"gray": 1}), source, capsys)
