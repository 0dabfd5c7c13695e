"""`lmdali figure neighbours` on features of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import run
from feature_files import write_features

from lmdali.model.features_file import Features
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.figure_neighbours import NeighboursConfig, figure_neighbours
from lmdali.tools.record_pictures import read_records


def features_of(directory: Path, source: Path, seed: int, **changes: Any) -> Features:
    """Random features of a dataset: what is drawn beside what is then known."""
    manifest = load_manifest(source)
    rows = np.random.default_rng(seed).normal(size=(manifest.num_records, 4))
    facts = {"dataset": str(source), "dataset_digest": manifest.digest, "image_size": manifest.image_size}
    return write_features(directory, rows, **{**facts, **changes})


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, small_raw_dataset: Path) -> Features:
    return features_of(tmp_path_factory.mktemp("neighbours") / "f", small_raw_dataset, 0)


def test_neighbours_distances_and_pixel_percentiles_are_right(
    features: Features, small_raw_dataset: Path, tmp_path: Path
) -> None:
    config = NeighboursConfig(count=4, quiet=True)
    document = figure_neighbours(features.directory, ("3", "30"), tmp_path / "n.png", config)
    rows = np.concatenate(list(features.blocks())).astype(np.float64)
    pixels = read_records(small_raw_dataset, range(37)).pixels.astype(np.int64)
    for entry, record in zip(document["queries"], (3, 30), strict=True):
        distances = np.sqrt(((rows - rows[record]) ** 2).sum(axis=1))
        apart = np.sqrt(((pixels - pixels[record]) ** 2).sum(axis=(1, 2, 3)))
        others = np.delete(apart, record)
        wanted = [index for index in np.argsort(distances, kind="stable") if index != record][:4]
        assert [near["record"] for near in entry["neighbours"]] == wanted
        for near in entry["neighbours"]:
            assert near["distance"] == distances[near["record"]]
            assert near["pixel_distance"] == apart[near["record"]]
            assert near["pixel_percentile"] == pytest.approx(100 * (others < apart[near["record"]]).sum() / 35)
            assert near["class"] in near["key"]
        assert entry["key"] and entry["name"] in ("a", "b")
    every = [near["pixel_percentile"] for entry in document["queries"] for near in entry["neighbours"]]
    assert document["mean_pixel_percentile"] == pytest.approx(np.mean(every))
    assert json.loads((tmp_path / "n.json").read_text()) == document
    assert cv2.imread(str(tmp_path / "n.png")).shape[1] > 5 * 160


def test_without_queries_five_records_are_drawn(features: Features, tmp_path: Path) -> None:
    assert run("figure", "neighbours", features.directory, "--out", tmp_path / "n.png", "--no-pixels", "--quiet") == 0
    document = json.loads((tmp_path / "n.json").read_text())
    assert [entry["query"] for entry in document["queries"]] == ["3", "11", "18", "25", "33"]
    assert {len(entry["neighbours"]) for entry in document["queries"]} == {6}
    assert document["mean_pixel_percentile"] is None


def test_queries_come_from_another_dataset(
    features: Features, small_jpeg_dataset: Path, raw_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = features_of(tmp_path / "q", small_jpeg_dataset, 1)
    out = tmp_path / "n.png"
    arguments = ("figure", "neighbours", features.directory, 5, "--out", out, "--quiet")
    assert run(*arguments, "--queries", asked.directory, "--names", _names(tmp_path)) == 0
    (entry,) = json.loads((tmp_path / "n.json").read_text())["queries"]
    assert entry["key"].startswith("00000005_") or entry["key"][8] == "_"
    assert entry["name"] in ("ant", "bee")
    assert {near["name"] for near in entry["neighbours"]} <= {"ant", "bee"}
    large = features_of(tmp_path / "large", raw_dataset, 1)
    assert run(*arguments, "--queries", large.directory) == 3
    assert "one image size" in capsys.readouterr().err


def _names(folder: Path) -> Path:
    path = folder / "names.txt"
    path.write_text("a ant, formicid\nb bee\n")
    return path


def test_a_picture_is_a_query(features: Features, small_raw_dataset: Path, tmp_path: Path) -> None:
    pixels = features_of(tmp_path / "p", small_raw_dataset, 0)
    shutil.rmtree(pixels.directory)
    assert run("features", small_raw_dataset, "pixels", tmp_path / "p", "--quiet", "-j", 1) == 0
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), read_records(small_raw_dataset, [9]).pixels[0][:, :, ::-1])
    document = figure_neighbours(
        tmp_path / "p", (str(picture),), tmp_path / "n.png", NeighboursConfig(quiet=True, device="cpu")
    )
    (entry,) = document["queries"]
    assert (entry["key"], entry["name"]) == (None, "picture.png")
    nearest = entry["neighbours"][0]
    assert (nearest["record"], nearest["pixel_distance"], nearest["pixel_percentile"]) == (9, 0.0, 0.0)


def test_bad_input_is_one_line(
    features: Features,
    small_raw_dataset: Path,
    raw_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = features_of(tmp_path / "gone", small_raw_dataset, 0, dataset=str(tmp_path / "nowhere"))
    manifest = load_manifest(small_raw_dataset)
    lone = write_features(
        tmp_path / "lone", np.ones((1, 4)), dataset=str(small_raw_dataset), dataset_digest=manifest.digest
    )
    out = tmp_path / "n.png"
    for code, part, *arguments in (
        (3, "is no longer there", gone.directory),
        (3, "its only record is the query", lone.directory),
        (3, "made of dataset", gone.directory, "--dataset", raw_dataset),
        (2, "there is no record 37", features.directory, 37),
        (2, "a picture's name ends in", features.directory, "--out", tmp_path / "n.txt"),
        (3, "n.txt", features.directory, "--names", tmp_path / "n.txt"),
    ):
        assert run("figure", "neighbours", "--out", out, "--quiet", *arguments) == code
        captured = capsys.readouterr()
        assert part in captured.err and captured.err.count("\n") == 1
    assert not out.exists()
