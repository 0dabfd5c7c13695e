"""`lmdali info` says what the manifest says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run

from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.describe import dataset_facts


def test_facts_are_those_of_the_manifest(small_raw_dataset: Path) -> None:
    manifest, facts = load_manifest(small_raw_dataset), dataset_facts(small_raw_dataset)
    assert facts["digest"] == manifest.digest
    assert (facts["num_records"], facts["num_rejected"]) == (37, 3)
    assert facts["class_counts"] == dict(zip(manifest.class_names, manifest.class_counts, strict=True))
    assert facts["encoding"] == "raw"
    assert facts["statistics"]["of_this_dataset"] is True


def test_json_is_one_document_and_the_table_names_an_empty_class(
    jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", jpeg_dataset, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 4
    assert run("info", jpeg_dataset) == 0
    assert "with 0 to 20 records each: apple, fig, pear, quince" in capsys.readouterr().out


def test_something_else_is_refused_with_a_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tmp_path) == 3
    assert "expected a dataset made by `lmdali convert`" in capsys.readouterr().err
    (tmp_path / "shards").mkdir()
    assert run("info", tmp_path) == 3
    assert "--resume" in capsys.readouterr().err
