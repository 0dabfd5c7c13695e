"""`lmdali audit` over datasets with planted copies: catalogue, search, report and exit code."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import run

from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.table_reader import read_rows, take_rows
from lmdali.tools.conversion_report import summarize
from lmdali.tools.describe import dataset_facts
from lmdali.tools.record_catalog import RecordCatalog


def scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(20, 230, (7, 7, 3), np.uint8)
    return cv2.resize(coarse, (300, 280), interpolation=cv2.INTER_CUBIC)


def save(path: Path, pixels: np.ndarray, quality: int = 95) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> tuple[Path, Path]:
    """Training and validation set: 20 and 8 different scenes and the copies that the tests name."""
    root = tmp_path_factory.mktemp("audit")
    train, val = root / "source/train", root / "source/val"
    for seed in range(20):
        save(train / f"{'ab'[seed % 2]}/{seed:02d}.jpg", scene(seed))
    for seed in range(100, 108):
        save(val / f"{'bc'[seed % 2]}/{seed}.jpg", scene(seed))
    shutil.copy(train / "a/00.jpg", train / "b/copy.jpg")  # the same file under two classes
    save(train / "b/reencoded.jpg", scene(1), 50)
    save(val / "b/leak.jpg", cv2.resize(scene(3), (640, 600), interpolation=cv2.INTER_CUBIC), 80)
    save(
        val / "c/mirrored.jpg", np.ascontiguousarray(scene(11)[:, ::-1])
    )  # the hash of a mirrored copy is found mostly, not always
    shutil.copy(train / "a/02.jpg", val / "b/file.jpg")
    for number, level in enumerate((30, 31, 200)):
        save(train / f"a/blank{number}.jpg", np.full((256, 256, 3), level, np.uint8))
    (train / "z").mkdir()
    return tuple(make_dataset(source, root / source.name, size=128) for source in (train, val))  # type: ignore[return-value]


def audited(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert run("audit", *args, "--json", "--quiet") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_planted_copies_are_found_and_nothing_else(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = audited(capsys, *sets, "--out", tmp_path / "new/pairs.parquet")
    rows = read_rows(tmp_path / "new/pairs.parquet")
    assert {(row["source"], row["other_source"]): row["kind"] for row in rows} == {
        ("a/00.jpg", "b/copy.jpg"): "same_file",
        ("a/02.jpg", "b/file.jpg"): "same_file",
        ("b/01.jpg", "b/reencoded.jpg"): "near",
        ("b/03.jpg", "b/leak.jpg"): "near",
        ("b/11.jpg", "c/mirrored.jpg"): "mirrored",
    }
    found = facts["duplicates"]
    assert found["pairs"] == {"same_file": 2, "same_pixels": 0, "near": 2, "mirrored": 1}
    assert (found["groups"], found["records"], found["leaking_groups"], found["leaks"]) == (5, 10, 3, 3)
    assert found["label_conflicts"] == 3, "two across datasets, one within"
    assert [len({record["dataset"] for record in group["records"]}) for group in facts["first_groups"]] == [
        2,
        2,
        2,
        1,
        1,
    ]
    for row in rows:
        for side in ("", "other_"):
            dataset = Path(row[f"{side}dataset"])
            (record,) = take_rows(dataset / "records.parquet", ["source", "label"], [row[f"{side}record"]])
            assert record["source"] == row[f"{side}source"]
            assert load_manifest(dataset).class_names[record["label"]] == row[f"{side}class_name"]
        assert row["hash_distance"] <= 7 and 0 <= row["pixel_difference"] <= 20 and row["correlation"] >= 0.95
    assert sorted({row["group"] for row in rows}) == list(range(5))
    for group in facts["first_groups"]:  # each has its own class, of which a group may have thousands
        assert all(record["class"] == record["source"].split("/")[0] for record in group["records"])
        assert group["classes"] == sorted({record["class"] for record in group["records"]})


def test_balance_classes_and_odd_records_are_told(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = audited(capsys, *sets)
    train, val = facts["datasets"]
    assert (train["records"], train["empty_classes"], train["blank"]) == (25, ["z"], 3)
    assert (train["smallest_class"], train["largest_class"]) == (12, 13)
    assert train["oddities"]["blank"] == 3 and val["blank"] == 0
    (classes,) = facts["class_lists"]
    assert (classes["same"], classes["missing"], classes["added"]) == (False, ["a", "z"], ["c"])
    monkeypatch.chdir(sets[0].parent)  # a column is wide enough wherever the files are
    assert run("audit", sets[0].name, sets[1].name, "--quiet") == 0
    text = " ".join(capsys.readouterr().out.split())  # a title may take two lines
    assert "3 records show pictures of an earlier dataset" in text and "1: z" in text and "3 blank" in text
    assert "b/copy.jpg │ b │" in text and "a, b" not in text
    assert "b/leak.jpg" in text and "other classes than" in text


def test_mirrored_copies_are_left_out_on_request(sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    facts = audited(capsys, *sets, "--no-mirrored", "--distance", "7")
    assert facts["duplicates"]["pairs"]["mirrored"] == 0 and facts["duplicates"]["leaks"] == 2


def test_more_leaks_than_allowed_are_exit_code_9(sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audit", *sets, "--max-leaks", "2", "--json", "--quiet") == 9
    captured = capsys.readouterr()
    assert json.loads(captured.out)["duplicates"]["leaks"] == 3
    assert "3 records show pictures of an earlier dataset, --max-leaks allows 2" in captured.err
    assert run("audit", *sets, "--max-leaks", "3", "--quiet") == 0
    assert run("audit", sets[0], "--max-leaks", "0", "--quiet") == 0


def test_a_dataset_made_before_hashes_were_kept_is_hashed_from_its_pixels(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = older(sets[0], tmp_path / "old")
    catalogs = [RecordCatalog([directory], quiet=True) for directory in (sets[0], old)]
    assert [catalog.was_hashed for catalog in catalogs] == [[False], [True]]
    assert (catalogs[0].hashes == catalogs[1].hashes).all() and (catalogs[0].is_blank == catalogs[1].is_blank).all()
    new_facts, old_facts = audited(capsys, *sets), audited(capsys, old, sets[1])
    assert old_facts["duplicates"] == new_facts["duplicates"]
    assert [dataset["hashes"] for dataset in old_facts["datasets"]] == ["computed", "kept"]
    assert dataset_facts(old)["num_records"] == 25
    assert take_rows(old / "records.parquet", ["source"], [7]) == take_rows(
        sets[0] / "records.parquet", ["source"], [7]
    )
    assert summarize(old, 0.0, []).oddities == {"blank": 3}


def older(dataset: Path, out: Path) -> Path:
    """A copy of a dataset as a version without hashes would have written it."""
    shutil.copytree(dataset, out)
    table = out / "records.parquet"
    pq.write_table(pq.read_table(table).drop_columns(["phash"]), table)
    manifest = load_manifest(out)
    recipe = {name: value for name, value in manifest.recipe.items() if name != "perceptual_hash"}
    tables = manifest.tables | {"records.parquet": hashlib.sha256(table.read_bytes()).hexdigest()}
    replace(manifest, recipe=recipe, tables=tables).with_digest().save(out)
    return out


def test_the_sheet_shows_two_pictures_of_each_group(sets: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("audit", *sets, "--sheet", tmp_path / "sheet.png", "--quiet") == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None and sheet.shape[1] > 6 * 128 and sheet.shape[0] > 2 * 128, "ten pictures in rows of six"


def test_audits_that_cannot_work_are_refused_and_datasets_stay_as_they_are(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for directory in sets for path in directory.rglob("*") if path.is_file()}
    assert run("audit", sets[0], sets[0]) == 2
    assert "named twice" in capsys.readouterr().err
    assert run("audit", sets[0], "--out", sets[0] / "pairs.parquet") == 2
    assert "holds its own files only" in capsys.readouterr().err
    assert run("audit", sets[0], "--sheet", tmp_path / "sheet.txt") == 2
    assert run("audit", tmp_path) == 3
    assert {path: path.read_bytes() for directory in sets for path in directory.rglob("*") if path.is_file()} == before


def test_a_conversion_says_what_is_twice_in_it_and_stays_as_it_is(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(photo_folder / "apple", source / "apple")
    shutil.copytree(photo_folder / "fig", source / "fig")
    (source / "fig" / "twin.jpg").write_bytes((photo_folder / "apple" / "000.jpg").read_bytes())
    options = ["--size", "64", "-j", "1", "--quiet"]
    assert run("convert", source, tmp_path / "plain", *options) == 0
    capsys.readouterr()
    assert run("convert", source, tmp_path / "checked", *options, "--check-duplicates", "--json") == 0
    found = json.loads(capsys.readouterr().out)["duplicates"]
    assert (found["groups"], found["pairs"]["same_file"], found["label_conflicts"]) == (1, 1, 1)
    plain, checked = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "plain", tmp_path / "checked")
    )
    assert plain == checked
    assert run("convert", source, tmp_path / "part", *options, "--check-duplicates", "--part", "1/2") == 2
