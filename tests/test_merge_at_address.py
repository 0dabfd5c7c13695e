"""Merging at an address: what cannot be merged is refused in words, and what is complete stays as it is."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from command_line import run

from lmdali.pipeline.stores import open_writable_store
from lmdali.tools.dataset_upload import upload_dataset
from lmdali.tools.merge_at_address import merge_at_address
from lmdali.tools.output_argument import Output


def test_what_cannot_be_merged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"memory://merge{tmp_path}"
    for arguments, code, message in (
        ((place,), 3, "`lmdali convert` never began"),
        ((place, tmp_path), 2, "name no other directory"),
        ((place, "--move"), 2, "leave out --move"),
        ((tmp_path, "--scratch", tmp_path), 2, "--scratch is for an OUT that is an address"),
        (("https://host/set",), 2, "plain HTTP cannot be written to"),
    ):
        assert run("merge", *arguments) == code
        assert message in capsys.readouterr().err
    open_writable_store(place).put(".staging/plan.json", b"{}")
    assert run("merge", place) == 5
    assert "plan.json: KeyError" in capsys.readouterr().err


def test_a_complete_dataset_is_left_as_it_is(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    place = f"memory://merged{tmp_path}"
    digest = upload_dataset(small_jpeg_dataset, place, quiet=True).manifest_digest
    summary = merge_at_address(place, scratch=tmp_path / "scratch")
    assert summary.was_complete and summary.manifest_digest == digest
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("data/train", Path("data/train")),
        ("s3://bucket/a//b", "s3://bucket/a//b"),
        ("file:///data/a%20b", Path("/data/a b")),
        ("C:/data", Path("C:/data")),
    ],
)
def test_an_output_is_a_path_or_an_address(given: str, expected: Path | str) -> None:
    assert Output().convert(given, None, click.Context(click.Command("it"))) == expected
